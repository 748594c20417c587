"""How the files of a table are read: what a data set is told, and a model file remembers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

LAYOUTS = ("auto", "criteo")


@dataclass(frozen=True)
class TableOptions:
    """How files are read.

    Attributes:
        layout: "auto": by the end of a file's name; "criteo": without a header, a label, 13
            numbers and 26 categories between tabs.
        column_names: of a text file without a header; one whose first line has such names, in any
            order, is read by them.
        delimiter: of a text file; by default `,` in `.csv`, a tab in `.tsv`.
    """

    layout: str = "auto"
    column_names: tuple[str, ...] | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(
                f"layout={self.layout!r} is not known", fix=f"give one of {', '.join(LAYOUTS)}"
            )
        if self.layout == "criteo" and self.column_names is not None:
            raise ConfigError(
                f"layout=criteo has names of its own, and column_names="
                f"{','.join(self.column_names)} would be ignored",
                fix="leave one of them out",
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(
                f"delimiter={self.delimiter!r} is not one character", fix='give ",", ";" or "\\t"'
            )
        if self.column_names is not None and not all(self.column_names):
            raise ConfigError(
                f"column_names={','.join(self.column_names)!r} has an empty name",
                fix="name every column",
            )

    def changed(self, settings: Sequence[str]) -> "TableOptions":
        r"""Return them after settings of a command line; a `layout` puts all others aside.

        So do `column_names` where the layout is "criteo", which has its own.

        Args:
            settings: `layout=criteo`, `column_names=user,item,click`, `delimiter=;`.

        Raises:
            ConfigError: one is something else.

        Example:
            >>> TableOptions().changed(["column_names=user,click", r"delimiter=\t"])
            TableOptions(layout='auto', column_names=('user', 'click'), delimiter='\t')
        """
        given: dict[str, str | tuple[str, ...]] = {}
        known = [field.name for field in fields(self)]
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or key not in known:
                raise ConfigError(
                    f"{setting} is no setting of how a table is read",
                    fix=f"{did_you_mean(key, known)}; all else follows from the feature spec",
                )
            is_names = key == "column_names"
            given[key] = tuple(map(str.strip, value.split(","))) if is_names else value
            if key == "delimiter" and value == r"\t":
                given[key] = "\t"
        is_other = "column_names" in given and self.layout == "criteo"
        start = TableOptions() if is_other or "layout" in given else self
        return replace(start, **given)  # pyright: ignore[reportArgumentType]

    def to_json(self) -> dict[str, str | list[str]]:
        """Return what differs from the defaults, JSON-able: settings of `data`."""
        found = {}
        for field in fields(self):
            if (value := getattr(self, field.name)) != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_json(cls, content: Mapping) -> "TableOptions":
        """Build from what `to_json` returned.

        Raises:
            ConfigError: the content is something else.
        """
        if not isinstance(content, Mapping) or content.keys() - {f.name for f in fields(cls)}:
            raise ConfigError(
                f"reading={str(content)[:60]!r} is not how a table is read", fix="write it again"
            )
        names, rest = content.get("column_names"), {**content}
        if names is not None:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ConfigError(
                    f"column_names={str(names)[:60]!r} is no list of names", fix="write it again"
                )
            rest["column_names"] = tuple(names)
        for name in ("layout", "delimiter"):
            if not isinstance(rest.get(name, ""), str):
                raise ConfigError(f"{name}={rest[name]!r} is no text", fix="write it again")
        return cls(**rest)
