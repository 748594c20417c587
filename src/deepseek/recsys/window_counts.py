"""How often each key was shown and clicked in the last hour, day, ...: counts in rings of parts.

A window is kept in parts of equal length; a count at time t is that of the part which t is in and
of those before it that still belong to the window. So a window of a day in 8 parts reaches back
between 21 and 24 hours. A decaying count weighs a part by 2 to the power of minus its age in
half-lives, and ends after 8 of them (0.4 % of a weight).

Counts are whole numbers, and a count is a sum over parts in a fixed order: however events are cut
into batches, the same events give the same bits. Shown and clicked are counted together, as the
upper and the lower half of an int64 (`pack`).

Shapes: N events, R reads, U distinct keys, P parts of a window.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from deepseek.errors import ConfigError

PARTS = 8
PARTS_OF_HALF_LIFE, HALF_LIVES = 4, 8
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NEVER = np.iinfo(np.int64).min
FIRST_CAPACITY = 1024


@dataclass(frozen=True)
class Window:
    """A stretch of time that is counted over.

    Attributes:
        name: "1h", "30m", "7d"; "decay_1d" for a half-life; "all".
        part_s: length of a part, seconds; 0 for "all".
        num_parts: P; 0 for "all".
        is_decaying: whether older parts weigh less.
    """

    name: str
    part_s: float = 0.0
    num_parts: int = 0
    is_decaying: bool = False

    @classmethod
    def parse(cls, name: str) -> "Window":
        """Return the window of a name.

        Raises:
            ConfigError: it is no name of a window.
        """
        if name == "all":
            return cls(name)
        found = re.fullmatch(r"(decay_)?([1-9]\d*)([smhd])", name)
        if found is None:
            raise ConfigError(
                f"window {name!r} is not known", fix='give "1h", "30m", "7d", "decay_1d" or "all"'
            )
        span_s = int(found[2]) * _UNITS_S[found[3]]
        if found[1]:
            return cls(
                name, span_s / PARTS_OF_HALF_LIFE, PARTS_OF_HALF_LIFE * HALF_LIVES, is_decaying=True
            )
        return cls(name, span_s / PARTS, PARTS)


@dataclass(eq=False)
class Ring:
    """The parts of one window, of all keys.

    Attributes:
        window: what it is of.
        stamps: number of the part that each place holds, int64 (keys, P).
        counts: packed, of it, int64 (keys, P).
    """

    window: Window
    stamps: np.ndarray = field(init=False)
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.stamps = np.full((0, self.window.num_parts), _NEVER, np.int64)
        self.counts = np.zeros((0, self.window.num_parts), np.int64)

    def resize(self, capacity: int) -> None:
        """Make place for more keys."""
        self.stamps = grown(self.stamps, capacity, _NEVER)
        self.counts = grown(self.counts, capacity, 0)

    def at(self, slots: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """Return the counts in one part for each slot, packed (R,); 0 where a slot is -1."""
        places = parts % self.window.num_parts
        is_there = (slots >= 0) & (self.stamps[slots, places] == parts)
        return np.where(is_there, self.counts[slots, places], 0)

    def add(self, slots: np.ndarray, parts: np.ndarray, counts: np.ndarray) -> None:
        """Add packed counts of distinct (slot, part), none of which is too old."""
        places = parts % self.window.num_parts
        is_there = self.stamps[slots, places] == parts
        before = np.where(is_there, self.counts[slots, places], 0)
        self.counts[slots, places] = before + counts
        self.stamps[slots, places] = parts


def pack(shown: np.ndarray, clicked: np.ndarray) -> np.ndarray:
    """Return two counts, each below 2^31, as one int64; sums of such are packed sums."""
    return (shown.astype(np.int64) << 32) + clicked


def unpack(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shown and clicked."""
    return counts >> 32, counts & 0xFFFFFFFF


def grown(array: np.ndarray, capacity: int, fill: int) -> np.ndarray:
    """Return an array with more rows, the new ones filled."""
    more = np.full((capacity - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, more])


@dataclass(frozen=True, eq=False)
class Events:
    """Events in the order of key, and of time within a key.

    Attributes:
        order: places of the events as they were given, (N,).
        keys: number of each event's key among the distinct ones, ascending, (N,).
        distinct: the distinct keys, uint64 (U,), ascending.
        ranks: number of each event's time among the distinct ones, (N,).
        times: the distinct times, float64, ascending.
        counts: packed, (N,).
        sums: of the events before each, packed (N + 1,).
        begins: where the events of each event's key begin, (N,).
        same: where those of its key and its time begin, (N,).
    """

    order: np.ndarray
    keys: np.ndarray
    distinct: np.ndarray
    ranks: np.ndarray
    times: np.ndarray
    counts: np.ndarray
    sums: np.ndarray
    begins: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray, times: np.ndarray, counts: np.ndarray) -> "Events":
        """Arrange events; `times` ascend, `counts` are packed."""
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], counts[order]
        is_new_time = _changes(times)
        ranks = (np.cumsum(is_new_time) - 1)[order]
        is_new_key = _changes(hashes)
        places = np.arange(len(order))
        is_new = is_new_key | _changes(ranks)
        return cls(
            order=order,
            keys=np.cumsum(is_new_key) - 1,
            distinct=hashes[is_new_key],
            ranks=ranks,
            times=times[is_new_time],
            counts=counts,
            sums=np.concatenate([[0], np.cumsum(counts)]),
            begins=np.maximum.accumulate(np.where(is_new_key, places, 0)),
            same=np.maximum.accumulate(np.where(is_new, places, 0)),
        )

    def before(self, reads: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Return where the events of the keys of `reads` begin that are not before some times."""
        length = len(self.times) + 1
        places = self.keys * length + self.ranks
        return np.searchsorted(places, self.keys[reads] * length + ranks)


def _changes(values: np.ndarray) -> np.ndarray:
    """Return where a value differs from the one before it; the first does."""
    return np.concatenate([[True], values[1:] != values[:-1]])


class WindowCounts:
    """Counts of one kind of key in several windows.

    Args:
        windows: what is counted over.
    """

    def __init__(self, windows: tuple[Window, ...]) -> None:
        self.windows = windows
        self.rings = {w.name: Ring(w) for w in windows if w.num_parts}
        self.keys = np.zeros(0, np.uint64)
        self.last = np.zeros(0, np.float64)
        self.totals = np.zeros(0, np.int64)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def read(self, events: Events, which: np.ndarray) -> np.ndarray:
        """Return the counts that some of the events see, float64 (R, windows, 2).

        An event sees what was before its time, in the state and among the events.

        Args:
            events: arranged.
            which: which events, as they were given, bool (N,).
        """
        reads = np.flatnonzero(which[events.order])
        if not len(self.keys):  # nothing to look up yet
            self._resize(1)
        known = np.array([self._slots.get(key, -1) for key in events.distinct.tolist()], np.int64)
        slots, upper = known[events.keys[reads]], events.sums[events.same[reads]]
        found = np.zeros((len(reads), len(self.windows), 2))
        for number, window in enumerate(self.windows):
            if window.is_decaying:
                sums = _decayed(self.rings[window.name], events, slots, reads)
            elif window.num_parts:
                sums = unpack(_in_window(self.rings[window.name], events, slots, reads, upper))
            else:
                before = np.where(slots >= 0, self.totals[slots], 0)
                sums = unpack(before + upper - events.sums[events.begins[reads]])
            found[:, number, 0], found[:, number, 1] = sums
        as_given = np.empty_like(found)
        as_given[np.argsort(events.order[reads], kind="stable").argsort()] = found
        return as_given

    def add(self, events: Events, which: np.ndarray) -> None:
        """Take events into the state.

        Args:
            events: arranged.
            which: the events to be taken, as they were given, bool (N,).
        """
        chosen = np.flatnonzero(which[events.order])
        if not len(chosen):
            return
        keys, counts = events.keys[chosen], events.counts[chosen]
        first = np.flatnonzero(_changes(keys))
        last = np.concatenate([first[1:], [len(keys)]]) - 1
        slots = self._slots_for(events.distinct[keys[first]])
        times = events.times[events.ranks[chosen]]
        self.totals[slots] += np.add.reduceat(counts, first)
        self.last[slots] = times[last]
        slots = np.repeat(slots, last - first + 1)
        newest = np.repeat(times[last], last - first + 1)
        for ring in self.rings.values():
            parts, length = _parts_of(times, ring.window), ring.window.num_parts
            begin = np.flatnonzero(_changes(parts) | _changes(slots))
            sums = np.add.reduceat(counts, begin)
            fits = parts[begin] > _parts_of(newest[begin], ring.window) - length
            ring.add(slots[begin][fits], parts[begin][fits], sums[fits])

    def expire(self, before: float | None, max_keys: int) -> None:
        """Forget keys last seen before a time, and the oldest where there are too many."""
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        gone = slots[self.last[slots] < before] if before is not None else slots[:0]
        if len(slots) - len(gone) > max_keys:
            order = slots[np.lexsort((self.keys[slots], self.last[slots]))]
            gone = order[: len(slots) - max_keys * 9 // 10]
        for slot in gone.tolist():
            del self._slots[int(self.keys[slot])]
        self._free += gone.tolist()
        self.totals[gone] = 0
        for ring in self.rings.values():
            ring.stamps[gone] = _NEVER

    def _slots_for(self, keys: np.ndarray) -> np.ndarray:
        found = []
        for key in keys.tolist():
            slot = self._slots.get(key)
            if slot is None:
                if not self._free:
                    self._resize(max(FIRST_CAPACITY, 2 * len(self.keys)))
                slot = self._free.pop()
                self._slots[key] = slot
                self.keys[slot] = key
            found.append(slot)
        return np.array(found, np.int64)

    def _resize(self, capacity: int) -> None:
        self._free += range(capacity - 1, len(self.keys) - 1, -1)
        self.keys = grown(self.keys, capacity, 0)
        self.last = grown(self.last, capacity, 0)
        self.totals = grown(self.totals, capacity, 0)
        for ring in self.rings.values():
            ring.resize(capacity)

    # -- state -------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return the live keys, ascending, and all that is known of them."""
        keys = sorted(self._slots)
        slots = np.array([self._slots[key] for key in keys], np.int64)
        found = {
            "keys": np.array(keys, np.uint64).view(np.int64),
            "last": self.last[slots],
            "totals": self.totals[slots],
        }
        for name, ring in self.rings.items():
            # what is too old to count differs with how events were cut into batches
            newest = _parts_of(self.last[slots], ring.window)[:, None]
            is_there = ring.stamps[slots] > newest - ring.window.num_parts
            found[f"{name}.stamps"] = np.where(is_there, ring.stamps[slots], _NEVER)
            found[f"{name}.counts"] = np.where(is_there, ring.counts[slots], 0)
        return found

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take back what `state` returned."""
        keys = state["keys"].view(np.uint64)
        self.__init__(self.windows)
        if not len(keys):
            return
        self._resize(len(keys))
        slots = self._slots_for(keys)
        self.last[slots], self.totals[slots] = state["last"], state["totals"]
        for name, ring in self.rings.items():
            ring.stamps[slots] = state[f"{name}.stamps"]
            ring.counts[slots] = state[f"{name}.counts"]


def _parts_of(times: np.ndarray, window: Window) -> np.ndarray:
    return np.floor_divide(times, window.part_s).astype(np.int64)


def _in_window(
    ring: Ring, events: Events, slots: np.ndarray, reads: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Return the counts of reads in a window, packed (R,)."""
    length = ring.window.num_parts
    parts, ranks = _parts_of(events.times, ring.window), events.ranks[reads]
    first = np.searchsorted(parts, parts - length + 1)[ranks]
    own = upper - events.sums[events.before(reads, first)]
    now, stamps = parts[ranks][:, None], ring.stamps[slots]
    fits = (stamps > now - length) & (stamps <= now) & (slots >= 0)[:, None]
    return own + (ring.counts[slots] * fits).sum(1)


def _decayed(
    ring: Ring, events: Events, slots: np.ndarray, reads: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the decayed counts of reads, shown and clicked, (R,) each."""
    parts, ranks = _parts_of(events.times, ring.window), events.ranks[reads]
    shown, clicked = np.zeros(len(reads)), np.zeros(len(reads))
    end = events.same[reads]
    for age in range(ring.window.num_parts):
        first = np.searchsorted(parts, parts - age)[ranks]
        begin = np.minimum(events.before(reads, first), end)
        own = events.sums[end] - events.sums[begin]
        more = unpack(own + ring.at(slots, parts[ranks] - age))
        weight = 2.0 ** (-age / PARTS_OF_HALF_LIFE)
        shown, clicked, end = shown + weight * more[0], clicked + weight * more[1], begin
    return shown, clicked
