"""Events as clients send them, and as the log holds them.

```
{"kind": "impression", "request_id": "r1", "features": {"user_id": "u3", ...}}
{"kind": "click", "request_id": "r1"}
```
`id` makes an event unique; without it the kind and the fields that the join goes by do. `client`
says who it is from; where tokens are asked for, the token does. The log's own entries: `tick`, so
many events ago an update was due; `lost`, the place of a damaged record.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek.errors import DataError
from deepseek.recsys.online.event_log import Entry, Record

IMPRESSION, TICK = "impression", "tick"
OWN_KINDS = (TICK, "lost")
_OWN_IDS = tuple(f"{kind}:" for kind in OWN_KINDS)
MAX_TEXT = 512
_PLAIN = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """An event of the log.

    Attributes:
        record: where it stands.
        kind: `impression`, that of a label, or one of the log's own.
        key: what the join goes by.
        client: who it is from.
        row: columns of an impression.
    """

    record: Record
    kind: str
    key: str
    client: str
    row: Mapping[str, object]


def tick_entry(end: int) -> Entry:
    """Return the entry that asks for an update of what is before it."""
    return f"tick:{end}", b'{"kind":"tick"}'


def read_event(record: Record) -> Event:
    """Return what a record holds."""
    content = json.loads(record.content)
    return Event(
        record,
        content["kind"],
        content.get("key", ""),
        content.get("client", ""),
        content.get("features", {}),
    )


class EventReader:
    """Checks what clients send.

    Args:
        key: fields that the join goes by.
        kinds: of the events that make labels.
        columns: that an impression must have.
    """

    def __init__(self, key: Sequence[str], kinds: Sequence[str], columns: Sequence[str]) -> None:
        self._key, self._kinds, self._columns = tuple(key), frozenset(kinds), frozenset(columns)

    def entry(self, content: object, client: str | None) -> Entry:
        """Return the entry of an event for the log.

        Args:
            content: as it was sent.
            client: who sent it, if that is known; else what the event says.

        Raises:
            DataError: it is no event.
        """
        if not isinstance(content, dict):
            raise DataError(
                f"{str(content)[:40]!r} is no event", fix='send {"kind": ..., "request_id": ...}'
            )
        kind = content.get("kind")
        if not isinstance(kind, str) or (kind != IMPRESSION and kind not in self._kinds):
            known = ", ".join([IMPRESSION, *sorted(self._kinds)])
            raise DataError(f"kind={str(kind)[:40]!r} is unknown", fix=f"one of {known}")
        key = "\x1f".join(self._text(content, name) for name in self._key)
        said = self._text(content, "client") if "client" in content else ""
        kept: dict[str, object] = {"kind": kind, "key": key, "client": client or said}
        if kind == IMPRESSION:
            kept["features"] = self._features(content.get("features"))
        id_ = self._text(content, "id") if "id" in content else f"{kind}:{key}"
        if id_.startswith(_OWN_IDS):
            raise DataError(
                f"id={id_[:40]!r}: such ids are the log's own",
                fix=f"let ids begin with something else than {' or '.join(_OWN_IDS)}",
            )
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return id_, text.encode("utf-8", "surrogatepass")

    def _text(self, content: Mapping, name: str) -> str:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(
                f"{name}={str(value)[:40]!r} is neither text nor a whole number",
                fix=f"give every event {name}",
            )
        if len(text := str(value)) > MAX_TEXT:
            raise DataError(f"{name} has {len(text)} characters", fix=f"{MAX_TEXT} are enough")
        return text

    def _features(self, row: object) -> Mapping[str, object]:
        if not isinstance(row, dict):
            raise DataError(
                "an impression has no features", fix='send "features": {column: value, ...}'
            )
        check_columns(row, self._columns)
        for name, value in row.items():
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(each, _PLAIN) for each in values) or not all(
                math.isfinite(each) for each in values if isinstance(each, float)
            ):
                raise DataError(
                    f"features.{name}={str(value)[:40]!r} is neither a value nor a list of such",
                    fix="give texts, numbers, null, or a list of them",
                )
        return row


def check_columns(row: Mapping[str, object], columns: frozenset[str]) -> None:
    """Refuse a row without one of the columns.

    Raises:
        DataError: a column is missing.
    """
    if not columns <= row.keys():
        missing = sorted(columns - row.keys())
        raise DataError(
            f"features lack {', '.join(missing[:5])}",
            fix="give every column that the model was trained on; null where there is no value",
        )
