"""Impressions and what follows them -> examples, in an order that the log alone decides.

```
event of a label    within its window     a 1, at once
                    after it              `late`: a 1 after the 0 that was learnt, or dropped
                    before its impression waits for it
no event            in the window         a 0, when the window ends
```
Time is that of the log, which never goes back. An impression counts once, a label too, whatever is
sent twice.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deepseek.recsys.online.events import IMPRESSION, OWN_KINDS, Event
from deepseek.recsys.online.settings import JoinSettings, seconds

OPEN = -1
COUNTS = ("impressions", "repeated", "early", "late", "unmatched")


@dataclass
class Shown:
    """An impression whose labels may still come.

    Attributes:
        event: what was sent.
        labels: of each label 1, 0 or `OPEN`.
        seen: counters as they were before it, float32.
    """

    event: Event
    labels: list[int]
    seen: np.ndarray | None = None


@dataclass(frozen=True)
class Example:
    """One label of one impression.

    Attributes:
        shown: the impression.
        label: number of the label.
        value: 1 or 0.
        client: whose event decided it.
    """

    shown: Shown
    label: int
    value: int
    client: str


@dataclass
class Joined:
    """What some events came to, in order.

    Attributes:
        moves: what counters have to know: an impression, and whether it was clicked just then.
        times: of the moves.
        examples: to be learnt.
    """

    moves: list[tuple[Shown, bool]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


class Join:
    """See the module.

    Args:
        settings: windows.
        labels: in the order of the model.

    Attributes:
        counts: how many events were what.
    """

    def __init__(self, settings: JoinSettings, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._windows = [seconds(settings.labels[name].window) for name in self.labels]
        self._kinds: dict[str, list[int]] = {}
        for number, name in enumerate(self.labels):
            self._kinds.setdefault(settings.labels[name].event, []).append(number)
        self._corrects = settings.late == "correct"
        self._kept_s = max(self._windows) + seconds(settings.late_for)
        self._early_s = seconds(settings.early_for)
        self.counts = dict.fromkeys(COUNTS, 0)
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._open: list[deque[Shown]] = [deque() for _ in self.labels]
        self._early: OrderedDict[str, list[Event]] = OrderedDict()

    def take(self, events: Iterable[Event]) -> Joined:
        """Return what events come to; they follow those that were taken before."""
        joined = Joined()
        for event in events:
            self._pass_time(event.record.time, joined)
            if event.kind == IMPRESSION:
                self._show(event, joined)
            elif event.kind in self._kinds:
                self._label(event, event.record.time, joined)
            elif event.kind not in OWN_KINDS:  # the settings were changed since
                self.counts["unmatched"] += 1
        return joined

    def _pass_time(self, now: float, joined: Joined) -> None:
        for number, window in enumerate(self._windows):
            waiting = self._open[number]
            while waiting and waiting[0].event.record.time + window <= now:
                shown = waiting.popleft()
                if shown.labels[number] == OPEN:
                    shown.labels[number] = 0
                    joined.examples.append(Example(shown, number, 0, shown.event.client))
        while self._shown:
            oldest = next(iter(self._shown.values())).event
            if oldest.record.time + self._kept_s > now:
                break
            self._shown.popitem(last=False)
        while self._early:
            waiting_events = next(iter(self._early.values()))
            if waiting_events[0].record.time + self._early_s > now:
                break
            self._early.popitem(last=False)
            self.counts["unmatched"] += len(waiting_events)

    def _show(self, event: Event, joined: Joined) -> None:
        if event.key in self._shown:
            self.counts["repeated"] += 1
            return
        self.counts["impressions"] += 1
        shown = Shown(event, [OPEN] * len(self.labels))
        self._shown[event.key] = shown
        for waiting in self._open:
            waiting.append(shown)
        joined.moves.append((shown, False))
        joined.times.append(event.record.time)
        for early in self._early.pop(event.key, ()):
            self._label(early, event.record.time, joined)

    def _label(self, event: Event, now: float, joined: Joined) -> None:
        shown = self._shown.get(event.key)
        if shown is None:
            self._early.setdefault(event.key, []).append(event)
            self.counts["early"] += 1
            return
        for number in self._kinds[event.kind]:
            before = shown.labels[number]
            if before == 1:
                self.counts["repeated"] += 1
                continue
            shown.labels[number] = 1
            self.counts["late"] += before == 0
            if number == 0:
                joined.moves.append((shown, True))
                joined.times.append(now)
            if before == OPEN or self._corrects:
                joined.examples.append(Example(shown, number, 1, event.client))

    # -- state -------------------------------------------------------------------------------

    @property
    def oldest(self) -> int | None:
        """Offset of the oldest event that is still needed; `None`: none is."""
        offsets = [shown.event.record.offset for shown in self._shown.values()][:1]
        early = [events[0].record.offset for events in self._early.values()][:1]
        return min([*offsets, *early], default=None)

    @property
    def num_waiting(self) -> int:
        """Impressions whose window has not ended."""
        return max(map(len, self._open))

    def state(self, num_seen: int) -> dict[str, np.ndarray]:
        """Return offsets and labels of what waits; the events themselves are in the log.

        Args:
            num_seen: numbers of `seen`.
        """
        shown = list(self._shown.values())
        nothing = np.zeros(num_seen, np.float32)
        return {
            "shown": np.array([each.event.record.offset for each in shown], np.int64),
            "labels": np.array([each.labels for each in shown], np.int8).reshape(
                len(shown), len(self.labels)
            ),
            "seen": np.array(
                [nothing if each.seen is None else each.seen for each in shown], np.float32
            ).reshape(len(shown), num_seen),
            "early": np.array(
                [each.record.offset for events in self._early.values() for each in events], np.int64
            ),
            "counts": np.array([self.counts[name] for name in COUNTS], np.int64),
        }

    def load(
        self, state: dict[str, np.ndarray], fetch: Callable[[list[int]], dict[int, Event]]
    ) -> None:
        """Take back what `state` returned.

        Args:
            state: as it was.
            fetch: returns events by offset, out of the log.
        """
        events = fetch([*state["shown"].tolist(), *state["early"].tolist()])
        for offset, labels, seen in zip(
            state["shown"].tolist(), state["labels"].tolist(), state["seen"], strict=True
        ):
            shown = Shown(events[offset], labels, seen.copy() if seen.size else None)
            self._shown[shown.event.key] = shown
            for number, waiting in enumerate(self._open):
                if labels[number] == OPEN:
                    waiting.append(shown)
        for offset in state["early"].tolist():
            self._early.setdefault(events[offset].key, []).append(events[offset])
        self.counts = dict(zip(COUNTS, state["counts"].tolist(), strict=True))
