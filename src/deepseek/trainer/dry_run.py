"""A step of a real run on paper: the model as one of many ranks has it, without a number in it.

```
paper_ranks      torch's fake process group: the other ranks are imagined
mirror           the model's weights have shapes only (fake tensors)
Trainer.assembly spread over the ranks exactly as in training
go_through       one step's micro-batches, forward and backward; then the optimizer's step
```
Every storage and every collective on the way is counted. Nothing is written, and of the data
nothing is read but what a sample is.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deepseek.errors import ConfigError, DeepSeekError
from deepseek.memory.allocations import Allocations
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.mirror import mirror
from deepseek.parallel.collectives import Collective, Collectives
from deepseek.parallel.paper import block_outputs, paper_ranks, shapes_within, tell_shapes
from deepseek.trainer.announcement import model_line, plan_line
from deepseek.trainer.assembly import resolve_arithmetic
from deepseek.trainer.held_bytes import held_bytes
from deepseek.trainer.memory_budget import NAMES
from deepseek.trainer.multi_task import MultiTask
from deepseek.trainer.paper_plan import Forecast, find_source, forecast

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

CATEGORIES = ("weights", "gradients", "optimizer", "average", "activations", "logits", "buffers")
WALKED = 2
"""Micro-batches of an accumulated step that are walked: all after the first are alike."""


class Traffic(NamedTuple):
    """Collectives of one kind among the ranks of one axis, in a step.

    Attributes:
        axis: tp, cp, pp, data, or `pp ends`: the first and the last of a pipeline.
        kind: all_reduce, all_gather, ...
        number: of them.
        num_bytes: of their whole tensors together.
        sent_bytes: what this rank sends for them in a ring.
    """

    axis: str
    kind: str
    number: int
    num_bytes: int
    sent_bytes: float


@dataclass(frozen=True)
class DryRun:
    """What a step of one rank needs and sends.

    Attributes:
        rank: which.
        world_size: of how many.
        lines: model and plan, as a run announces them.
        held: bytes by category between steps.
        peak: bytes by category where their sum is largest.
        host_bytes: of a micro-batch's activations that wait on the host, beside the peak.
        traffic: the collectives of a step.
        forecast: what the analytic planner says of the same; `None` with its reason in `notes`.
        notes: what was left out, or taken otherwise, and why.
        seconds: that it took.
    """

    rank: int
    world_size: int
    lines: tuple[str, ...]
    held: dict[str, int]
    peak: dict[str, int]
    host_bytes: int
    traffic: tuple[Traffic, ...]
    forecast: Forecast | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """Most that is allocated at any time of a step."""
        return sum(self.peak.values())


def dry_run(build: Callable[[], "Trainer"], *, world_size: int = 1, rank: int = 0) -> DryRun:
    """Take one step of a training on paper, as one rank of any number.

    Args:
        build: makes the trainer, with `device="cpu"`; its model may be on the meta device.
        world_size: ranks of the run.
        rank: the one that is walked.

    Raises:
        ConfigError: the plan cannot work, with the nearest that do; or there is no such rank.

    Example:
        ```python
        dry_run(lambda: Trainer(model, data, parallel="fsdp64-tp8", device="cpu"), world_size=512)
        ```
    """
    began = perf_counter()
    with paper_ranks(world_size, rank), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a real run says them, of real numbers
        trainer, notes = build(), []
        walk = Walk(trainer, notes)
        walk.take_step()
        planned = walk.forecast()
        lines = [model_line(trainer.model, trainer.assembly, trainer.device)]
        if trainer.world.is_distributed:
            lines.append(plan_line(walk.step.parallel, trainer.plan_reason))
        return DryRun(
            rank, world_size, tuple(lines), walk.held(), walk.peak(), walk.host_bytes(),
            tuple(walk.traffic()), planned, tuple(notes), perf_counter() - began,
        )  # fmt: skip


class Walk:
    """One step on fake tensors.

    Args:
        trainer: put on paper, for good.
        notes: told what is left out.
        counts_traffic: note the collectives, too.

    Attributes:
        step: what is taken.
        why_not: reason that forward and backward are left out; empty if they are not.
    """

    def __init__(
        self, trainer: "Trainer", notes: list[str], *, counts_traffic: bool = True
    ) -> None:
        self.trainer, self.notes, self.why_not = trainer, notes, ""
        self._counts_traffic = counts_traffic
        if isinstance(trainer.task, MultiTask):
            raise ConfigError(
                "a dry run of several tasks: how many labels each has in a step is known from the"
                " data alone",
                fix="run it with one of the tasks; the heads add little",
            )
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        _simplify(trainer, notes)
        with torch.device(trainer.model.device):  # a head that is built now
            trainer.model.bind(trainer.spec)
        self._source = find_source(trainer.model, trainer.spec, notes)
        trainer.model = mirror(trainer.model, "cpu", self.fake)
        micro_batch = self._batch(trainer.plan.micro_batch_size)["inputs"]
        outputs = self._look_at_blocks(micro_batch)
        self.step = trainer.assembly.step
        with self.fake, self.step.precision.autocast():
            tell_shapes(self.step.parallel, outputs, micro_batch)
        self.trained = [w.local for w in self.step.parallel.weights.trained]
        self.allocations = Allocations()
        if (copies := self.step.graph.memory.copies) is not None:
            self.copy_to_host(copies)
        self.collectives = Collectives(lambda: str(len(self._begun)))
        self._begun: list[int] = []
        self._at_peak: dict[str, int] = {}
        self._optimizer_bytes = 0

    def _batch(self, num_samples: int) -> dict[str, Tensor]:
        fields = self.trainer.spec.fields
        if not {"inputs", "targets"} <= fields.keys():
            raise ConfigError(
                f"a dry run needs to know inputs and targets, and the data say {sorted(fields)}",
                fix="give a data set of pairs (inputs, targets)",
            )
        with self.fake:
            return {
                name: torch.zeros((num_samples, *field.shape), dtype=getattr(torch, field.dtype))
                for name, field in fields.items()
            }

    def _look_at_blocks(self, inputs: Tensor) -> list[Tensor]:
        if self.trainer.plan.pp == 1:
            return []
        trainer = self.trainer
        _, precision = resolve_arithmetic(
            trainer.model, trainer.spec, trainer.config, trainer.plan, trainer.device
        )
        with self.fake, precision.autocast():
            return block_outputs(trainer.model, inputs)

    def copy_to_host(self, copies: HostCopies) -> None:
        """Let these take what the policy says to the host, whose memory is not counted."""
        copies.uncounted = self.allocations.pause
        self.step.graph.memory.copies = copies

    def take_step(self) -> None:
        """Go forward and backward, and update the weights."""
        parallel, plan = self.step.parallel, self.trainer.plan
        for module in (parallel.engine, *parallel.modules()):
            module.train()
        count = plan.num_micro_batches
        size = self.step.micro_batch_size * (count if plan.pp > 1 else min(count, WALKED))
        batch = self._batch(size)
        with self.fake:
            if parallel.context is not None:
                batch = parallel.context.cut_targets(batch)
        self._watch_logits()
        apart = shapes_within(self.allocations.pause)
        traffic = self.collectives if self._counts_traffic else nullcontext()
        with self.fake, self.allocations, traffic, apart:
            held = [*(w.local for w in parallel.weights.weights), *parallel.buffers().values()]
            self.allocations.hold(held, "weights")
            if self.step.ema is not None:
                kept = [w.local for w in self.step.ema.average.weights.weights]
                self.allocations.hold(kept, "average")
            if self._go_through(batch, size * plan.num_shares):
                self._update(size)
        self.step.parallel.weights.drop_gradients()

    def _go_through(self, batch: dict[str, Tensor], num_samples: int) -> bool:
        """Return whether it could be done."""
        parallel = self.step.parallel
        try:
            self.step.go_through(
                batch, num_samples, lambda: num_samples,
                lambda: self._begun.append(len(self.collectives.seen)),
            )  # fmt: skip
            gradients = parallel.take_gradients()
        except DeepSeekError:
            raise
        except Exception as error:  # any model may do anything
            self.why_not = in_words(error)
            self.notes.append(f"forward and backward are left out: {self.why_not}")
            self._begun.clear()
            self.collectives.seen.clear()
            return False
        self.allocations.hold(gradients, "gradients")
        return True

    def _update(self, num_own: int) -> None:
        self._begun.append(len(self.collectives.seen))
        boundary, optimizer = self.step.boundary, self.step.optimizer
        try:
            self.trainer.world.average(boundary.running_statistics(), num_own)
            optimizer.step()
        except Exception as error:
            self._optimizer_bytes = self.trainer.assembly.optimizer_bytes
            self.notes.append(
                f"the optimizer's step is left out, its state taken as usual: {in_words(error)}"
            )
        states = [v for each in optimizer.state.values() for v in each.values()]
        self.allocations.hold((v for v in states if isinstance(v, Tensor)), "optimizer")
        always = {"optimizer", "average"} | ({"gradients"} if self._has_buckets else set())
        self._at_peak = self.allocations.at_peak(always)

    def _watch_logits(self) -> None:
        """Learn how many numbers the logits have, when they are there."""
        parallel = self.step.parallel
        if self.trainer.config.loss_chunks > 1:
            self.notes.append("with loss_chunks logits are counted among the activations")
            return
        ends = [parallel.forward]
        if parallel.pipeline is not None:
            ends = [stage for stage in parallel.pipeline.stages if stage.is_last]

        def note(module: object, args: tuple, output: Tensor) -> None:
            local = output._local_tensor if isinstance(output, DTensor) else output
            self.allocations.logits_numel = local.numel()
            self.allocations.hold([local], "logits")

        def forget(module: object, args: tuple) -> None:
            self.allocations.logits_numel = 0  # of the micro-batch before

        for end in ends:
            end.register_forward_pre_hook(forget)
            end.register_forward_hook(note)

    @property
    def _has_buckets(self) -> bool:
        """Whether gradients lie in DDP's buckets, which are there all the time."""
        return isinstance(self.step.parallel.forward, DistributedDataParallel)

    def forecast(self) -> Forecast | None:
        """Return what the planner says of the same; `None` where it does not know the model."""
        return forecast(self.trainer, self._source, self.notes)

    # -- what was seen -----------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Return the bytes by category between steps."""
        held = held_bytes(self.trainer)
        walked = held["optimizer"] + self._optimizer_bytes
        usual = self.trainer.assembly.optimizer_bytes
        buckets = self.trained if self._has_buckets else []
        return {
            "weights": held["weights"],
            "gradients": sum(tensor.nbytes for tensor in buckets),
            "optimizer": walked if self._at_peak else usual,
            "average": held["average"],
        }

    def peak(self) -> dict[str, int]:
        """Return the bytes by category where their sum is largest; of what could be walked."""
        if not self._at_peak:
            return self.held() | {"gradients": sum(tensor.nbytes for tensor in self.trained)}
        peak = {name: self._at_peak.get(name, 0) for name in CATEGORIES}
        peak["optimizer"] += self._optimizer_bytes
        return peak

    def host_bytes(self) -> int:
        """Return the bytes of a micro-batch that wait on the host."""
        copies = self.step.graph.memory.copies
        return 0 if copies is None else copies.copied_bytes

    def traffic(self) -> list[Traffic]:
        """Return the collectives of a whole step, by axis and kind."""
        numbers: Counter[tuple[str, str]] = Counter()
        num_bytes: Counter[tuple[str, str]] = Counter()
        sent: dict[tuple[str, str], float] = {}
        for each, times in self._repeated():
            key = self._axis_of(each), each.kind
            numbers[key] += times
            num_bytes[key] += times * each.num_bytes
            sent[key] = sent.get(key, 0.0) + times * each.sent_bytes
        found = [Traffic(*key, numbers[key], num_bytes[key], sent[key]) for key in numbers]
        return sorted(found)

    def _axis_of(self, collective: Collective) -> str:
        world, ends = self.trainer.world, self.step.parallel.tie_group
        names = {}
        for axis in world.mesh.mesh_dim_names or () if world.mesh is not None else ():
            group = world.group(axis)
            names[group.group_name if group is not None else ""] = axis
        if (cp := world.group("cp")) is not None and collective.is_functional:
            names[cp.group_name] = "cp"
        if ends is not None:
            names[ends.group_name] = "pp ends"
        axis = names.get(collective.group, "data")
        return "data" if axis in ("dp_replicate", "shard") else axis

    def _repeated(self) -> list[tuple[Collective, int]]:
        """Return each collective, and how often a step of all micro-batches has it."""
        seen, plan = self.collectives.seen, self.trainer.plan
        if plan.pp > 1 or plan.num_micro_batches <= WALKED or len(self._begun) <= WALKED:
            return [(each, 1) for each in seen]
        # all but the last micro-batch are like the first
        first = self._begun[0], self._begun[1]
        return [
            (each, plan.num_micro_batches - 1 if first[0] <= at < first[1] else 1)
            for at, each in enumerate(seen)
        ]


def _simplify(trainer: "Trainer", notes: list[str]) -> None:
    """Set what cannot be walked to what can, and say so."""
    config, changes = trainer.config, {}
    if "static" in (config.graph, trainer.model.graph):
        trainer.model.graph = changes["graph"] = "dynamic"
        notes.append(
            "graph=static is walked operator by operator: what compiling saves is left out"
        )
    if config.precision in ("fp8", "fp16"):
        changes["precision"] = "bf16"
        notes.append(f"precision={config.precision} is walked as bf16")
    if config.memory not in NAMES:
        notes.append(
            f"memory={config.memory} is resolved by a trial with real numbers: walked as pointwise"
        )
        changes["memory"] = "pointwise"
    if config.optimizer_in_backward:
        changes["optimizer_in_backward"] = False
        notes.append("optimizer_in_backward is walked as an update after the backward pass")
    if config.offload in ("optimizer", "parameters"):
        changes["offload"] = "none"
        notes.append(f"offload={config.offload} is walked as if all of it were on the device")
    if config.offload == "activations":
        notes.append("offload=activations is walked; the planner keeps all on the device")
    if config.parallel.compression == "powersgd":
        notes.append("compression=powersgd: gradients are counted whole")
    trainer.config = config.model_copy(update=changes)
    trainer.device = torch.device("cpu")


def in_words(error: BaseException) -> str:
    """Return what an error comes from, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
