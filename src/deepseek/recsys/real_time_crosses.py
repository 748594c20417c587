"""Counters and ratios of keys and crosses of keys that move with every event.

How often a user, an item, or a user together with a category was shown and clicked in the last
hour, day or week. An event sees only what was before it: events of the same time do not see each
other, and a click counts from when it arrives. `replay` computes the features of a table, `read`
those of one event, by the same code.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from deepseek.checkpoint.durable_file import write_durably
from deepseek.config.features import DenseFeature
from deepseek.datasets.feature_encoder import missing_feature_column
from deepseek.datasets.feature_values import (
    Column,
    distinct,
    hash_of,
    mix_hashes,
    numbers_of,
    token_of,
)
from deepseek.errors import CheckpointError, ConfigError, DataError
from deepseek.recsys.window_counts import Events, Window, WindowCounts, pack
from deepseek.whole_file import replacing

FORMAT = "deepseek real-time crosses 1"
EVENTS_AT_ONCE = 1 << 15
EXPIRE_EVERY = 1 << 15
"""Events between two looks for keys to forget: always after the same events, in batches or not."""
STATISTICS = ("shown", "clicked", "rate")
Event = Mapping[str, object]


class RealTimeCrosses:
    """Counters of keys in windows of time.

    The features of a key and a window are `KEY.WINDOW.shown` and `.clicked`, counts, and `.rate`,
    `(clicked + smoothing * prior) / (shown + smoothing)`. A key of several columns is called
    `user_id*genre`.

    Args:
        keys: columns, or tuples of columns that are crossed.
        windows: "1h", "30m", "7d", ...; "decay_1d": weights halve every day; "all".
        time: column of the time of an event, in seconds.
        label: column that says whether it was clicked: 1 or 0.
        prior: rate of a key that was never shown.
        smoothing: how many times a key must be shown to count as much as the prior.
        max_keys: of each kind; above it, those that were not seen for longest are forgotten.
        expire_after_s: keys that were not seen for so long are forgotten; `None`: none are.
        late: what an event is that comes with a time before that of one already taken: "error", or
            "now": it counts from the newest time on.

    Raises:
        ConfigError: an argument is out of its range.

    Example:
        >>> crosses = RealTimeCrosses(["item"], windows=["1h"], prior=0.1, smoothing=10)
        >>> crosses.update({"time": 0, "item": "a", "click": 1})
        >>> round(crosses.read({"time": 60, "item": "a"})["item.1h.rate"], 4)
        0.1818
    """

    def __init__(
        self,
        keys: Sequence[str | Sequence[str]],
        *,
        windows: Sequence[str] = ("1h", "1d", "7d", "all"),
        time: str = "time",
        label: str = "click",
        prior: float = 0.1,
        smoothing: float = 20.0,
        max_keys: int = 1_000_000,
        expire_after_s: float | None = None,
        late: str = "error",
    ) -> None:
        self.keys = tuple((key,) if isinstance(key, str) else tuple(key) for key in keys)
        self.windows = tuple(Window.parse(name) for name in windows)
        self.time, self.label = time, label
        self.prior, self.smoothing = float(prior), float(smoothing)
        self.max_keys, self.expire_after_s, self.late = max_keys, expire_after_s, late
        self._check()
        self._tables = [WindowCounts(self.windows) for _ in self.keys]
        self.clock = -np.inf
        """Time of the newest event that was taken."""
        self.num_events = 0
        """Events that were taken."""
        # those of the newest time: one that comes with the same time must not see them
        self._pending_hashes = np.zeros((0, len(self.keys)), np.uint64)
        self._pending_counts = np.zeros(0, np.int64)

    def _check(self) -> None:
        problems = []
        if not self.keys or not all(self.keys):
            problems.append(f"keys={self.keys} names no column")
        if len(set(self.keys)) < len(self.keys):
            problems.append("a key is given twice")
        if not self.windows or len({w.name for w in self.windows}) < len(self.windows):
            problems.append("windows are none, or one is given twice")
        if not 0 <= self.prior <= 1:
            problems.append(f"prior={self.prior} is not in 0..1")
        if not self.smoothing > 0:
            problems.append(f"smoothing={self.smoothing} is not > 0")
        if self.max_keys < 1:
            problems.append(f"max_keys={self.max_keys} is not >= 1")
        if self.expire_after_s is not None and not self.expire_after_s > 0:
            problems.append(f"expire_after_s={self.expire_after_s} is not > 0")
        if self.late not in ("error", "now"):
            problems.append(f'late={self.late!r} is neither "error" nor "now"')
        if problems:
            raise ConfigError("; ".join(problems), fix="correct the arguments of RealTimeCrosses")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order of `read` and `replay`."""
        return tuple(
            f"{'*'.join(key)}.{window.name}.{statistic}"
            for key in self.keys
            for window in self.windows
            for statistic in STATISTICS
        )

    @property
    def num_keys(self) -> int:
        """Keys that something is known of, of all kinds."""
        return sum(len(table) for table in self._tables)

    def features(self) -> dict[str, DenseFeature]:
        """Return entries of the section `dense` of a feature spec: counts by their logarithm."""
        return {
            name: DenseFeature(column=name, log=not name.endswith(".rate"), indicator=False)
            for name in self.feature_names
        }

    # -- online ------------------------------------------------------------------------------

    def read(self, events: Event | Sequence[Event]) -> dict:
        """Return what an event sees, without taking it: its features by name.

        Args:
            events: columns of the keys and the time; or several, such as the candidates of a
                request, for which features are arrays, float32 (N,).

        Raises:
            DataError: a column is missing, or the time is before that of an event already taken.
        """
        if isinstance(events, Mapping):
            return {name: float(row[0]) for name, row in self.read([events]).items()}
        return self.read_columns(_columns_of(events, [*self._key_columns, self.time]))

    def read_columns(self, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
        """Return what events see, without taking them.

        Args:
            columns: of the keys and the time, all of one length.

        Returns:
            The features by name, float32 (N,).

        Raises:
            DataError: a column is missing, or the time is before that of an event already taken.
        """
        for name in [*self._key_columns, self.time]:
            if name not in columns:
                raise missing_feature_column(name, columns)
        hashes, times = self._hashes(columns), self._times(columns)
        order = np.argsort(times, kind="stable")
        nothing = np.zeros(len(times), np.int64)
        found = self._process(
            hashes[order], times[order], nothing, np.ones(len(times), bool), keeps=False
        )
        features = np.empty_like(found)
        features[order] = found
        return self._named(features)

    def update(
        self, events: Event | Sequence[Event], *, shown: int = 1, clicked: int | None = None
    ) -> None:
        """Take an event, or several in the order of time.

        A click that comes later than what was shown is an event of its own, with the columns of
        the first and the time it arrives: `update(event, shown=0, clicked=1)`; the first is then
        taken with `clicked=0`.

        Args:
            events: columns of the keys, the time, and the label.
            shown: how often it was shown.
            clicked: how often it was clicked; by default as its label says.

        Raises:
            DataError: a column is missing, or the time is before that of an event already taken.
            ConfigError: a count is below 0.
        """
        rows = [events] if isinstance(events, Mapping) else events
        if not rows:
            return
        if shown < 0 or (clicked is not None and clicked < 0):
            raise ConfigError(
                f"shown={shown}, clicked={clicked}: what was counted cannot be taken back",
                fix="give counts of 0 or more",
            )
        wanted = [*self._key_columns, self.time] + ([self.label] if clicked is None else [])
        columns = _columns_of(rows, wanted)
        times, hashes = self._times(columns), self._hashes(columns)
        clicks = self._clicks(columns[self.label]) if clicked is None else clicked
        counts = pack(np.full(len(rows), shown), np.full(len(rows), clicks))
        if (times[1:] < times[:-1]).any():
            raise DataError("the events are not in the order of time", fix="sort them by time")
        self._process(hashes, times, counts, np.zeros(len(rows), bool), keeps=True)

    def follow(
        self, events: Sequence[Event], shown: Sequence[int], clicked: Sequence[int]
    ) -> np.ndarray:
        """Take events in the order of time, and return what those that were shown saw before.

        Args:
            events: columns of the keys, and the time.
            shown: of each, how often it was shown: 1, or 0 for a click that comes later.
            clicked: of each.

        Returns:
            Features of the events with `shown`, float32 (R, features).

        Raises:
            DataError: a column is missing, or the time is before that of an event already taken.
        """
        if not events:
            return np.zeros((0, len(self.feature_names)), np.float32)
        columns = _columns_of(events, [*self._key_columns, self.time])
        counts, reads = pack(np.array(shown), np.array(clicked)), np.array(shown) > 0
        return self._process(self._hashes(columns), self._times(columns), counts, reads, keeps=True)

    # -- a table -----------------------------------------------------------------------------

    def replay(
        self, columns: Mapping[str, Column], label_time: str | None = None
    ) -> dict[str, np.ndarray]:
        """Read and then take the rows of a table in the order of time.

        Args:
            columns: of the keys, the time and the label, in any order of rows.
            label_time: column of when a label arrived; one that is empty never did. By default
                labels arrive with their event.

        Returns:
            The features, float32 (N,), in the order of the rows.

        Raises:
            DataError: a column is missing, a time is, or a label arrives before its event.
        """
        for name in [*self._key_columns, self.time, self.label]:
            if name not in columns:
                raise missing_feature_column(name, columns)
        hashes, times = self._hashes(columns), self._times(columns)
        clicks = self._clicks(columns[self.label])
        counts = pack(np.ones(len(times), np.int64), clicks)
        reads = np.ones(len(times), bool)
        if label_time is not None:
            arrivals = numbers_of(columns[label_time], label_time)
            if (arrivals < times).any():
                row = int(np.flatnonzero(arrivals < times)[0])
                raise DataError(
                    f"{label_time}={arrivals[row]:g} of row {row} is before its"
                    f" {self.time}={times[row]:g}",
                    fix="give the time at which the label arrived",
                )
            late = np.flatnonzero(~np.isnan(arrivals) & (clicks > 0))
            counts = np.concatenate([counts - clicks, clicks[late]])
            hashes = np.concatenate([hashes, hashes[late]])
            times = np.concatenate([times, arrivals[late]])
            reads = np.concatenate([reads, np.zeros(len(late), bool)])
        order = np.argsort(times, kind="stable")
        found = self._process(hashes[order], times[order], counts[order], reads[order], keeps=True)
        features = np.empty_like(found)
        features[order[reads[order]]] = found
        return self._named(features)

    # -- inside ------------------------------------------------------------------------------

    @property
    def _key_columns(self) -> list[str]:
        return list(dict.fromkeys(column for key in self.keys for column in key))

    def _hashes(self, columns: Mapping[str, Column]) -> np.ndarray:
        """Return a hash of every key, uint64 (N, keys)."""
        known = {}
        for name in self._key_columns:
            values, places = distinct(columns[name])
            known[name] = np.array([hash_of(token_of(v)) for v in values], np.uint64)[places]
        return np.stack([mix_hashes([known[part] for part in key]) for key in self.keys], axis=1)

    def _times(self, columns: Mapping[str, Column]) -> np.ndarray:
        times = numbers_of(columns[self.time], self.time)
        if np.isnan(times).any():
            raise DataError(
                f"{self.time} is missing in {int(np.isnan(times).sum())} events",
                fix="give every event a time, in seconds",
            )
        return times

    def _clicks(self, column: Column) -> np.ndarray:
        labels = numbers_of(column, self.label)
        if not np.isin(labels, (0.0, 1.0)).all():
            wrong = labels[~np.isin(labels, (0.0, 1.0))][0]
            raise DataError(f"{self.label}={wrong:g} is neither 1 nor 0", fix="make it 1 or 0")
        return labels.astype(np.int64)

    def _process(
        self,
        hashes: np.ndarray,
        times: np.ndarray,
        counts: np.ndarray,
        reads: np.ndarray,
        *,
        keeps: bool,
    ) -> np.ndarray:
        """Return features of the events that read; take them all if `keeps`."""
        newest = np.maximum(np.maximum.accumulate(times), self.clock)
        is_late = times < newest
        if is_late.any() and self.late == "error":
            place = int(is_late.argmax())
            raise DataError(
                f"{self.time}={times[place]:.15g} is before {newest[place]:.15g}, the time of an"
                " event already taken",
                fix='give events in the order of time, or set late="now"',
            )
        times = newest
        found = [np.zeros((0, len(self.feature_names)), np.float32)]
        for start, end in self._spans(len(times)) if keeps else [(0, len(times))]:
            part = slice(start, end)
            found.append(self._step(hashes[part], times[part], counts[part], reads[part], keeps))
        return np.concatenate(found)

    def _spans(self, num_events: int) -> Iterator[tuple[int, int]]:
        start = 0
        while start < num_events:
            until_expiry = EXPIRE_EVERY - self.num_events % EXPIRE_EVERY
            end = min(num_events, start + min(EVENTS_AT_ONCE, until_expiry))
            yield start, end
            start = end

    def _step(
        self,
        hashes: np.ndarray,
        times: np.ndarray,
        counts: np.ndarray,
        reads: np.ndarray,
        keeps: bool,
    ) -> np.ndarray:
        num_new, num_pending = len(times), len(self._pending_hashes)
        if num_new == 0:
            return np.zeros((0, len(self.feature_names)), np.float32)
        hashes = np.concatenate([self._pending_hashes, hashes])
        counts = np.concatenate([self._pending_counts, counts])
        times = np.concatenate([np.full(num_pending, self.clock), times])
        is_read = np.concatenate([np.zeros(num_pending, bool), reads])
        is_over = times < times[-1]
        columns = []
        for number, table in enumerate(self._tables):
            events = Events.of(hashes[:, number], times, counts)
            if is_read.any():
                columns.append(self._statistics(table.read(events, is_read)))
            if keeps:
                table.add(events, is_over)
        if keeps:
            self.clock = float(times[-1])
            self._pending_hashes, self._pending_counts = hashes[~is_over], counts[~is_over]
            self.num_events += num_new
            if self.num_events % EXPIRE_EVERY == 0:
                self._expire()
        if not columns:
            return np.zeros((0, len(self.feature_names)), np.float32)
        return np.concatenate(columns, axis=1)

    def _statistics(self, counts: np.ndarray) -> np.ndarray:
        shown, clicked = counts[..., 0], counts[..., 1]
        rate = (clicked + self.smoothing * self.prior) / (shown + self.smoothing)
        return np.stack([shown, clicked, rate], axis=2).reshape(len(counts), -1).astype(np.float32)

    def _expire(self) -> None:
        before = None if self.expire_after_s is None else self.clock - self.expire_after_s
        for table in self._tables:
            table.expire(before, self.max_keys)

    def _named(self, features: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(features[:, number])
            for number, name in enumerate(self.feature_names)
        }

    # -- state -------------------------------------------------------------------------------

    @property
    def settings(self) -> dict:
        """The arguments, JSON-able."""
        return {
            "keys": [list(key) for key in self.keys],
            "windows": [window.name for window in self.windows],
            "time": self.time,
            "label": self.label,
            "prior": self.prior,
            "smoothing": self.smoothing,
            "max_keys": self.max_keys,
            "expire_after_s": self.expire_after_s,
            "late": self.late,
        }

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return all that was counted; the same after the same events, however they were cut."""
        state = {
            "clock": np.array([self.clock]),
            "num_events": np.array([self.num_events], np.int64),
            "pending.hashes": self._pending_hashes.view(np.int64),
            "pending.counts": self._pending_counts,
        }
        for number, table in enumerate(self._tables):
            state |= {f"{number}.{name}": array for name, array in table.state().items()}
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            CheckpointError: it is of other keys or windows.
        """
        own = self.state_dict()
        if state.keys() != own.keys() or any(
            state[name].shape[1:] != array.shape[1:] or state[name].dtype != array.dtype
            for name, array in own.items()
        ):
            raise CheckpointError(
                "the state is not one of these keys and windows",
                fix="make RealTimeCrosses with the settings that the state was made with",
            )
        self.clock, self.num_events = float(state["clock"][0]), int(state["num_events"][0])
        self._pending_hashes = state["pending.hashes"].view(np.uint64)
        self._pending_counts = state["pending.counts"]
        for number, table in enumerate(self._tables):
            names = [name for name in own if name.startswith(f"{number}.")]
            table.load({name.partition(".")[2]: state[name] for name in names})

    def save(self, path: str | os.PathLike) -> None:
        """Write settings and state to a safetensors file, whole or not at all."""
        arrays = {name: np.ascontiguousarray(each) for name, each in self.state_dict().items()}
        about = {"format": FORMAT, "settings": json.dumps(self.settings)}
        with replacing(Path(path)) as draft:
            write_durably(draft, [save(arrays, about)])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RealTimeCrosses":
        """Return what `save` wrote.

        Raises:
            CheckpointError: the file is damaged, or another kind.
        """
        try:
            with safe_open(os.fspath(path), "np") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise CheckpointError(
                        f"{path} holds no real-time crosses", fix="give a file that save() wrote"
                    )
                crosses = cls(**json.loads(about["settings"]))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} cannot be read: {error}", fix="use an older copy of the file"
            ) from error
        crosses.load_state_dict(arrays)
        return crosses


def _columns_of(events: Sequence[Event], names: Sequence[str]) -> dict[str, Column]:
    found = {}
    for name in dict.fromkeys(names):
        for event in events:
            if name not in event:
                raise missing_feature_column(name, event)
        found[name] = [event[name] for event in events]
    return found
