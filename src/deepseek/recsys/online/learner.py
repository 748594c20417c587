"""Learns from the log, cut by cut: what it has become depends on the log and on nothing else.

```
cut      the records up to a `tick`, or `cut_events` of them
learn    join -> counters -> predict -> guard -> update
state    all of it, and the offset of the next record: one checkpoint
```
A restart loads the newest checkpoint and learns the rest again, to the same bits: cuts lie where
they lay, whatever the clock says. What waits for its labels is in the checkpoint by its offset.
"""

import json
import struct
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from deepseek.checkpoint import Checkpoint
from deepseek.errors import CheckpointError, DataError
from deepseek.models.eval_mode import evaluating
from deepseek.recsys.online.event_log import EventLog, Record, records_from
from deepseek.recsys.online.events import TICK, Event, read_event
from deepseek.recsys.online.guard import (
    CAPPED,
    FLIPPED,
    LEARNT,
    MALFORMED,
    REASONS,
    Guard,
)
from deepseek.recsys.online.join import Example, Join, Shown
from deepseek.recsys.online.online_model import TIME, OnlineModel, Row, check_labels, make_crosses
from deepseek.recsys.online.recent import Recent
from deepseek.recsys.online.settings import OnlineSettings

_SPARSE = ("adagrad", "sgd")


class Learner:
    """See the module.

    Args:
        model: what it begins with.
        settings: of the service.

    Attributes:
        offset: of the next record.
        num_cuts, num_updates: so far.
        window: the newest examples that were learnt: row, label, value, prediction before.

    Raises:
        ConfigError: the settings are for other labels.
    """

    def __init__(self, model: OnlineModel, settings: OnlineSettings) -> None:
        check_labels(model, settings)
        self.model, self.settings = model, settings
        self._began_with = _hash_of(model)
        self.crosses = make_crosses(settings)
        self.join = Join(settings.join, model.labels)
        self.guard = Guard(settings.guard)
        self.recent = [Recent(settings.gate.window) for _ in model.labels]
        self.window: deque[tuple[Row, int, int, float]] = deque(maxlen=settings.gate.window)
        self.offset = self.num_cuts = self.num_updates = 0
        self.num_skipped = 0
        """Updates that were not made, because they were not finite."""
        self._optimizer = _make_optimizer(model.engine, settings)

    def learn(self, records: Sequence[Record]) -> None:
        """Take the records of one cut."""
        joined = self.join.take(map(read_event, records))
        self._count(joined.moves, joined.times)
        size = self.settings.learner.step_examples
        for start in range(0, len(joined.examples), size):
            self._take(joined.examples[start : start + size], start)
        self.offset = records[-1].offset + 1
        self.num_cuts += 1

    def _count(self, moves: Sequence[tuple[Shown, bool]], times: Sequence[float]) -> None:
        if self.crosses is None:
            return
        keys = {column for key in self.crosses.keys for column in key}
        events, shown, clicked, whose = [], [], [], []
        for (each, is_click), time in zip(moves, times, strict=True):
            row = each.event.row
            if any(isinstance(row.get(column, []), list) for column in keys):
                continue  # malformed: `_encode` leaves it out, too
            events.append({**{column: row[column] for column in keys}, TIME: time})
            shown.append(int(not is_click))
            clicked.append(int(is_click))
            whose += [] if is_click else [each]
        for each, seen in zip(whose, self.crosses.follow(events, shown, clicked), strict=True):
            each.seen = seen

    def _take(self, examples: Sequence[Example], place: int) -> None:
        """Predict examples, from `place` of their cut on, and then learn them in one step."""
        batch, examples, rows = self._encode(examples)
        if not examples:
            return
        with evaluating(self.model.engine):
            found = self.model.probs(batch)
        probs = found[np.arange(len(examples)), [each.label for each in examples]]
        learnt = np.flatnonzero(self._judge(examples, rows, probs) == LEARNT)
        if len(learnt):
            seed = self.settings.learner.seed * 1_000_003 + self.offset + place
            torch.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
            # what is set aside is in no moment of a batch, and in no gradient: 0 * inf is NaN
            chosen = {name: each[torch.from_numpy(learnt)] for name, each in batch.items()}
            self._learn(chosen, [examples[place] for place in learnt.tolist()])

    def _learn(self, batch: dict[str, Tensor], examples: Sequence[Example]) -> None:
        self.model.engine.train()
        numbers = torch.tensor([each.label for each in examples])
        values = torch.tensor([float(each.value) for each in examples])
        logits = self.model.logits(batch)[torch.arange(len(examples)), numbers]
        self._update(nn.functional.binary_cross_entropy_with_logits(logits, values))

    def _encode(
        self, examples: Sequence[Example]
    ) -> tuple[dict[str, Tensor], list[Example], list[Row]]:
        """Return a batch, with the examples and rows that are in it; malformed ones are not."""
        rows = [self._row(each.shown) for each in examples]
        try:
            return self.model.encode(rows), list(examples), rows
        except DataError:
            good = [place for place, row in enumerate(rows) if self._is_whole(row)]
        self.guard.counts[REASONS[MALFORMED]] += len(rows) - len(good)
        kept = [rows[place] for place in good]
        return self.model.encode(kept), [examples[place] for place in good], kept

    def _is_whole(self, row: Row) -> bool:
        try:
            self.model.encode([row])
        except DataError:
            return False
        return True

    def _row(self, shown: Shown) -> Row:
        if self.crosses is None or shown.seen is None:
            return shown.event.row
        names = self.crosses.feature_names
        return {**shown.event.row, **dict(zip(names, shown.seen.tolist(), strict=True))}

    def _judge(
        self, examples: Sequence[Example], rows: Sequence[Row], probs: np.ndarray
    ) -> np.ndarray:
        values = np.array([each.value for each in examples])
        numbers = np.array([each.label for each in examples])
        verdicts = np.array(
            [
                self.guard.judge(each.client, prob, each.value)
                for each, prob in zip(examples, probs.tolist(), strict=True)
            ]
        )
        is_known = ~np.isin(verdicts, (CAPPED, FLIPPED, MALFORMED))
        for number, recent in enumerate(self.recent):
            chosen = is_known & (numbers == number)
            recent.add(probs[chosen], values[chosen])
        for place in np.flatnonzero(verdicts == LEARNT).tolist():
            entry = (rows[place], int(numbers[place]), int(values[place]), float(probs[place]))
            self.window.append(entry)
        return verdicts

    def _update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if _clip(self.model.engine, self.settings.learner.clip_norm):
            # opted out of by name: torch warns where it is left open
            with torch.sparse.check_sparse_tensor_invariants(False):
                self._optimizer.step()
            self.num_updates += 1
        else:
            self.num_skipped += 1

    # -- state -------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return all that a restart needs; its step is the offset."""
        names: dict[Tensor, str] = {
            parameter: name for name, parameter in self.model.engine.module.named_parameters()
        }
        optimizer = {
            f"{names[parameter]}/{key}": value
            for parameter, state in self._optimizer.state.items()
            for key, value in state.items()
        }
        guard, guard_rest = self.guard.state()
        num_seen = 0 if self.crosses is None else len(self.crosses.feature_names)
        groups = {"join": self.join.state(num_seen), "guard": guard}
        groups |= {f"recent_{n}": recent.state() for n, recent in enumerate(self.recent)}
        if self.crosses is not None:
            groups["crosses"] = self.crosses.state_dict()
        tensors = {group: _to_tensors(arrays) for group, arrays in groups.items()}
        tensors |= {"model": self.model.engine.module.state_dict(), "optimizer": optimizer}
        counts = [self.offset, self.num_cuts, self.num_updates, self.num_skipped]
        oldest = self.offset if self.join.oldest is None else self.join.oldest
        state = {
            "counts": counts, "guard": guard_rest, "needs": min(oldest, self.offset),
            "learns": self._learns, "began_with": self._began_with,
        }  # fmt: skip
        return Checkpoint(self.offset, tensors, state)

    @property
    def _learns(self) -> str:
        """What a checkpoint must agree with to be gone on from."""
        settings = self.settings
        parts = [settings.join, settings.guard, settings.crosses, settings.gate.window]
        learner = settings.learner
        parts += [learner.algorithm, learner.lr, learner.cut_events, learner.clip_norm]
        return repr([*parts, learner.step_examples, learner.seed])

    def load(self, checkpoint: Checkpoint, log: EventLog) -> None:
        """Go on from a checkpoint.

        Args:
            checkpoint: of the same model and settings.
            log: where what waits is.

        Raises:
            CheckpointError: it is of other settings, began with another model, or the log has lost
                what it needs.
        """
        if checkpoint.state["learns"] != self._learns:
            raise CheckpointError(
                "the checkpoint was made with other settings of join, learner, guard or crosses",
                fix="put them back, or begin in a new folder with model: the newest version",
            )
        # checkpoints of older versions do not say it
        if checkpoint.state.get("began_with", self._began_with) != self._began_with:
            raise CheckpointError(
                f"the checkpoint began with another model than {self.settings.model}",
                fix="put that one back, or begin in a new folder",
            )
        arrays = {
            group: {name: tensor.numpy() for name, tensor in tensors.items()}
            for group, tensors in checkpoint.tensors.items()
            if group not in ("model", "optimizer")
        }
        self.model.engine.module.load_state_dict(dict(checkpoint.tensors["model"]))
        parameters = dict(self.model.engine.module.named_parameters())
        for name, tensor in checkpoint.tensors["optimizer"].items():
            weight, _, key = name.rpartition("/")
            self._optimizer.state[parameters[weight]][key] = tensor.clone()
        self.join.load(arrays["join"], lambda offsets: _fetch(log, offsets))
        self.guard.load(arrays["guard"], checkpoint.state["guard"])
        for number, recent in enumerate(self.recent):
            recent.load(arrays[f"recent_{number}"])
        if self.crosses is not None:
            self.crosses.load_state_dict(arrays["crosses"])
        counts = checkpoint.state["counts"]
        self.offset, self.num_cuts, self.num_updates, self.num_skipped = counts


class Cuts:
    """The log from an offset on, in whole cuts.

    Args:
        log: to read.
        offset: where a cut begins.
        size: records of a cut, at most.
    """

    def __init__(self, log: EventLog, offset: int, size: int) -> None:
        self._log, self._size = log, size
        self._next, self._records = offset, deque[Record]()
        self._open: list[Record] = []

    def take(self) -> list[Record] | None:
        """Return the next cut; `None`: it is not whole yet."""
        while True:
            if not self._records:
                self._records.extend(self._log.read(self._next, 4096))
                if not self._records:
                    return None
                self._next = self._records[-1].offset + 1
            record = self._records.popleft()
            self._open.append(record)
            if len(self._open) == self._size or is_tick(record):
                cut, self._open = self._open, []
                return cut

    def __iter__(self) -> Iterator[list[Record]]:
        while (cut := self.take()) is not None:
            yield cut


def is_tick(record: Record) -> bool:
    """Return whether a record asks for an update."""
    return len(record.content) < 32 and read_event(record).kind == TICK


def weights_hash(state: dict[str, Tensor]) -> str:
    """Return a hash of weights, by which two learners are compared."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(struct.pack("<q", tensor.numel()))
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash_of(model: OnlineModel) -> str:
    """Return a hash of weights, and of how rows become what they are for."""
    digest = xxhash.xxh3_128(json.dumps(model.spec.to_json()).encode())
    digest.update(weights_hash(model.engine.module.state_dict()).encode())
    return digest.hexdigest()


def _make_optimizer(engine: nn.Module, settings: OnlineSettings) -> torch.optim.Optimizer:
    learner = settings.learner
    for module in engine.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = learner.algorithm in _SPARSE
    kinds = {
        "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
    }
    return kinds[learner.algorithm](engine.parameters(), lr=learner.lr)


def _clip(engine: nn.Module, limit: float) -> bool:
    """Shorten gradients, those of single rows too, to a length; return whether they are finite."""
    found = []
    for parameter in engine.parameters():
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad.values())
        else:
            found.append(parameter.grad)
    norm = torch.stack([grad.square().sum() for grad in found]).sum().sqrt()
    if not torch.isfinite(norm):
        return False
    if norm > limit:
        for grad in found:
            grad.mul_(limit / norm)
    return True


def _to_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    # numpy gives empty arrays a stride of 0, which cannot be written as bytes
    return {
        name: torch.from_numpy(each).clone(memory_format=torch.contiguous_format)
        for name, each in arrays.items()
    }


def _fetch(log: EventLog, offsets: list[int]) -> dict[int, Event]:
    """Return events by offset, out of the log."""
    wanted, found = set(offsets), {}
    for record in records_from(log, min(wanted)) if wanted else ():
        if record.offset in wanted:
            found[record.offset] = read_event(record)
        if len(found) == len(wanted):
            break
    if missing := wanted - found.keys():
        raise CheckpointError(
            f"the log has no record at offset {min(missing)}, which the checkpoint needs",
            fix="use the log that the checkpoint was made with",
        )
    return found
