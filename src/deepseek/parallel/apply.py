"""Parallelism put on a single-device model from outside, in one place and one order.

```
every rank has the weights of rank 0
pipeline    cut into stages, of which a rank keeps its own
context     tokens divided in the blocks
tensor      heads and features divided in the blocks
compile     each block, where graph=static
shard       weights divided, or the model wrapped by DDP
schedule    the stages put in motion
```
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

from deepseek.models import ModelEngine
from deepseek.models.classifier import BlockModel
from deepseek.models.growing_table import growing_tables
from deepseek.models.tensor_part import TensorPart
from deepseek.parallel.context import ContextParallel
from deepseek.parallel.data import average_gradients, reduces_now, replicate, shard
from deepseek.parallel.huggingface import (
    PretrainedStage,
    cut_pretrained,
    divide_pretrained,
    layer_lists,
)
from deepseek.parallel.layout import LocalWeights
from deepseek.parallel.pipeline import MicroLoss, Pipeline
from deepseek.parallel.stages import (
    Stage,
    block_ranges,
    cut_stage,
    stage_ids,
    tied_names,
    untie,
)
from deepseek.parallel.tensor import Division, divide_randomness, divide_tables, divide_tensors
from deepseek.parallel.world import World


class ParallelModel:
    """A model as this rank computes it.

    Args:
        engine: the whole model, the same architecture on all ranks; changed in place.
        world: the ranks.
        dtype: of gathered weights under `dp_shard`; `None`: their own.
        compiles: compile each block.
        takes_divided_logits: whether the loss can be taken of logits that are divided by classes.
        has_unused: whether some weights get no gradient.
        wraps: let DDP reduce gradients, where that is its work.
        offloads: under `dp_shard`, keep what is divided in the memory of the host.

    Attributes:
        forward: from inputs to logits, where there is no pipeline.
        pipeline: `None` without one.
        whole_names: names in the state of the whole model -> the name that a weight is known by.
        weights: what this rank holds.
        is_compiled: whether its blocks are.
        has_unused: whether some weights get no gradient.
        tie_group: the first and the last rank of a pipeline, where both hold one weight.
        gradient_factor: what the loss is multiplied by, as gradients are averaged between ranks.
    """

    def __init__(
        self,
        engine: ModelEngine,
        world: World,
        *,
        dtype: torch.dtype | None = None,
        compiles: bool = False,
        takes_divided_logits: bool = False,
        has_unused: bool = False,
        wraps: bool = True,
        offloads: bool = False,
    ) -> None:
        self.engine = engine
        self.world = world
        self.whole_names = _whole_names(engine.module)
        self.forward: nn.Module = engine
        self.pipeline: Pipeline | None = None
        self.context: ContextParallel | None = None
        self.divides_logits, self.is_compiled, self.has_unused = False, compiles, has_unused
        self._ties: list[tuple[Tensor, ...]] = []
        self.tie_group: dist.ProcessGroup | None = None
        self._lists = engine.hints.blocks or layer_lists(engine.module)
        if not world.is_distributed:
            self.weights = LocalWeights([engine.module])
            self.gradient_factor = 1.0
            return
        plan, hints = world.plan, engine.hints
        world.equalize(engine)
        stages, numbers = _cut(engine, world)
        # a V has both ends on one rank, where they share their weight as they are
        ties = tied_names(engine.module) if plan.pp > 1 and not plan.is_v_shaped else []
        untie(stages, ties)
        models = [stage.model for stage in stages] or [engine.module]
        divisions: dict[str, Division] = {}
        sequence = plan.divides_tokens
        vocabulary = takes_divided_logits and plan.tp > 1
        self._enter_context(models, stages)
        for model in models:
            if plan.tp > 1 and isinstance(model, BlockModel) and world.mesh is not None:
                mesh = world.mesh["tp"]
                divisions |= divide_tensors(
                    model, hints, mesh, sequence=sequence, vocabulary=vocabulary
                )
                if not world.is_paper:  # who drops what cannot be seen in shapes
                    divide_randomness(model, hints, mesh.get_local_rank(), sequence=sequence)
                self.divides_logits |= vocabulary and "head.weight" in divisions
        if plan.tp > 1 and world.mesh is not None:
            divisions |= divide_pretrained(models, world.mesh["tp"])
            divisions |= divide_tables(engine.module, hints, world.mesh["tp"])
        self._leave_context(models, stages)
        if compiles and not world.is_paper:
            self._compile(models, stages)
        if stages:
            engine.module = models[0]
        self._shard(models, stages, dtype, wraps, offloads)
        if not offloads:  # else torch moves what is not divided
            engine.place(world.device)
        self.gradient_factor = float(plan.num_shares * plan.cp)
        if stages:
            group = world.group("pp")
            is_own = not isinstance(stages[0], PretrainedStage)
            run = Pipeline if is_own else TokenPipeline
            self.pipeline = run(stages, numbers, plan, world.device, group)
            self.pipeline.on_batch = self._note_tokens
            self.pipeline.on_pass = world.note_progress
        first_names = {name for name, _ in ties}
        aliases = {other: name for name, other in ties} if _holds_last_only(stages) else {}
        twice = {**dict.fromkeys(first_names, True), **dict.fromkeys(aliases, False)}
        self.weights = LocalWeights(models, world, divisions, aliases, twice if ties else {})
        if ties:
            self.tie_group = _end_group(world)
            self._tied = [w for w in self.weights.weights if w.name in first_names]

    # -- putting it on -----------------------------------------------------------------------

    def _compile(self, models: Sequence[nn.Module], stages: Sequence[Stage]) -> None:
        # what does not say which its blocks are is compiled as one
        for block in _blocks(models, stages, self._lists) or models:
            block.compile(fullgraph=True, dynamic=False)

    def _enter_context(self, models: Sequence[nn.Module], stages: Sequence[Stage]) -> None:
        group, model = self.world.group("cp"), models[0]
        if group is None or not isinstance(model, BlockModel):
            return
        self.context = ContextParallel(model, group, self.world.device.type)
        for other in models[1:]:
            if isinstance(other, BlockModel):
                self.context.adopt(other)
        if not stages:
            self.context.begin(model.blocks[0])
        for stage in stages:
            if stage.is_first:
                self.context.begin(stage.blocks[0])

    def _leave_context(self, models: Sequence[nn.Module], stages: Sequence[Stage]) -> None:
        if self.context is None:
            return
        model = models[0]
        if not stages and isinstance(model, BlockModel):
            self.context.end(model.blocks[-1])
        for stage in stages:
            if stage.is_last:
                self.context.end(stage.blocks[-1])

    def _shard(
        self,
        models: Sequence[nn.Module],
        stages: Sequence[Stage],
        dtype: torch.dtype | None,
        wraps: bool,
        offloads: bool,
    ) -> None:
        world = self.world
        if world.plan.uses_fsdp:
            roots = list(stages) or [self.engine.module]
            for root in roots:
                blocks = _blocks([root], [root] if isinstance(root, Stage) else [], self._lists)
                shard(root, blocks, world, dtype, offloads=offloads)
        elif wraps and world.plan.pp == 1 and world.plan.num_shares * world.plan.cp > 1:
            self.engine.place(world.device)
            self.wrap()

    def wrap(self) -> None:
        """Wrap the model by DDP, in place of a wrapper that there may be."""
        if isinstance(self.forward, DistributedDataParallel):
            self.forward.reducer._remove_autograd_hooks()  # it may not be gone at once
        self.forward = replicate(self.engine, self.world, has_unused=self.has_unused)

    def _note_tokens(self, inputs: Tensor) -> None:
        model = self.engine.module
        if self.context is not None and isinstance(model, BlockModel):
            self.context.entry.num_tokens = model.count_tokens(inputs)

    # -- in a step ---------------------------------------------------------------------------

    def reduces_now(self, is_last: bool) -> AbstractContextManager:
        """Return the context of a micro-batch: its gradients are reduced if it is the last."""
        wrapped = self.engine.module if self.world.plan.uses_fsdp else self.forward
        return reduces_now(wrapped, is_last)

    def loss_context(self) -> AbstractContextManager:
        """Return the context in which a loss is taken, and gone backward from."""
        return loss_parallel() if self.divides_logits else nullcontext()

    def take_gradients(self) -> list[Tensor]:
        """Return the gradients of what is held here, reduced between ranks."""
        gradients = self.weights.take_gradients()
        plan = self.world.plan
        if plan.pp > 1 and not plan.uses_fsdp:
            average_gradients(gradients, self.world.group("data"), plan.settings)
        if self.tie_group is not None:
            for weight in self._tied:
                if weight.local.grad is not None:
                    dist.all_reduce(weight.local.grad, group=self.tie_group)
        if not self.world.is_paper:
            self.weights.share_tables(1 / self.gradient_factor)
        return gradients

    def whole_logits(self, logits: Tensor) -> Tensor:
        """Return logits that are divided by classes as one tensor; all ranks of `tp` call it."""
        if isinstance(logits, DTensor):
            return logits.full_tensor()[..., : self.engine.num_classes]
        return logits

    def whole_outputs(self, logits: Tensor, inputs: Tensor) -> Tensor:
        """Return logits of all classes and tokens; all ranks of `tp` and `cp` call it."""
        whole = self.whole_logits(logits)
        if self.context is not None and self.context.keeps_tokens:
            whole = self.context.gather(whole, inputs.shape[1])
        return whole

    def reshard(self) -> None:
        """Give up gathered weights: without a backward pass they would stay as they were."""
        for module in self.modules():
            for each in module.modules():
                if isinstance(each, FSDPModule):
                    each.reshard()

    def modules(self) -> list[nn.Module]:
        """Return the parts of the model on this rank."""
        return list(self.pipeline.stages) if self.pipeline is not None else [self.engine.module]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks on this rank; none where the model does not say what they are."""
        stages = self.pipeline.stages if self.pipeline is not None else []
        return _blocks(self.modules(), stages, self._lists)

    def train(self, mode: bool) -> None:
        """Set the mode of the model on this rank."""
        self.engine.train(mode)
        if self.pipeline is not None:
            for stage in self.pipeline.stages:
                stage.train(mode)

    def parts(self, buffers: Mapping[str, Tensor] | None = None) -> list[TensorPart]:
        """Return weights and persistent buffers as parts of the whole model's.

        Args:
            buffers: by name; those of the model by default.
        """
        weights = self.weights.weights
        parts = [part for w in weights for part in w.parts(w.local.detach())]
        is_written = all(self.world.coordinate(axis) == 0 for axis in ("dp_replicate", "tp"))
        is_written = is_written and self.world.share[0] == 0 and self.world.coordinate("cp") == 0
        for name, buffer in (self.buffers() if buffers is None else buffers).items():
            if name in self.whole_names:
                parts.append(TensorPart.whole(name, buffer, is_written))
        return parts

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers of the model on this rank, by name."""
        modules = self.pipeline.modules() if self.pipeline is not None else [self.engine.module]
        return {name: buffer for module in modules for name, buffer in module.named_buffers()}


class TokenPipeline(Pipeline):
    """A pipeline whose stages all take the tokens of their micro-batch, beside the stream."""

    def _go(self, step: Callable, inputs: Tensor, loss: MicroLoss, **options: Any) -> None:
        super()._go(step, inputs, loss, tokens=inputs, **options)  # pyright: ignore[reportArgumentType]


def block_row(module: nn.Module) -> list[nn.Module]:
    """Return what a pipeline cuts between."""
    row = module.blocks if isinstance(module, BlockModel) else module
    for name in layer_lists(module):
        row = module.get_submodule(name)
    return list(row)  # pyright: ignore[reportArgumentType]


def _whole_names(module: nn.Module) -> dict[str, str]:
    """Return `whole_names`, without tables that grow: they write themselves."""
    growing = tuple(f"{name}." for name in growing_tables(module))
    names = {name: name for name in module.state_dict() if not name.startswith(growing)}
    return names | {other: name for name, other in tied_names(module)}


def _cut(engine: ModelEngine, world: World) -> tuple[list[Stage], list[int]]:
    """Return the stages of this rank and their numbers; none without a pipeline."""
    plan = world.plan
    if plan.pp == 1:
        return [], []
    is_v = plan.is_v_shaped
    numbers = stage_ids(world.coordinate("pp"), plan.pp, plan.stages_per_rank, is_v=is_v)
    is_pretrained = bool(layer_lists(engine.module))
    cut = cut_pretrained if is_pretrained else partial(cut_stage, hints=engine.hints)
    ranges = block_ranges(len(block_row(engine.module)), plan.num_stages)
    stages = [
        cut(
            engine, blocks=ranges[number], is_first=number == 0,
            is_last=number == plan.num_stages - 1,
        )
        for number in numbers
    ]  # fmt: skip
    return stages, numbers


def _blocks(
    roots: Sequence[nn.Module], stages: Sequence[Stage], lists: Sequence[str]
) -> list[nn.Module]:
    if stages:
        return [block for stage in stages for block in stage.blocks]
    found = []
    for root in roots:
        for name in lists:
            found += list(root.get_submodule(name).children())
    return found


def _holds_last_only(stages: Sequence[Stage]) -> bool:
    return any(s.is_last for s in stages) and not any(s.is_first for s in stages)


def _end_group(world: World) -> dist.ProcessGroup | None:
    """Return the group of the first and the last rank of this pipeline, if this is one of them."""
    plan = world.plan
    rows = torch.arange(world.size).view(plan.pp, -1)
    own = None
    for column in range(rows.shape[1]):
        ends = [int(rows[0, column]), int(rows[-1, column])]
        group = dist.new_group(ends)
        if world.rank in ends:
            own = group
    return own  # pyright: ignore[reportReturnType]
