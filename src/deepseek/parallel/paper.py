"""Ranks on paper: one process that computes as one of many, the others imagined.

torch's fake process group stands for them. What a collective brings is never looked at, so this is
for tensors that have shapes and no numbers.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor, nn
from torch._C._distributed_c10d import _unregister_process_group
from torch.distributed.tensor._op_schema import OpSchema
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.parallel.apply import ParallelModel, block_row
from deepseek.parallel.world import is_launched, processes

_TABLES = (
    "_pg_map", "_pg_names", "_pg_group_ranks", "_pg_backend_config", "_tags_to_pg", "_pg_to_tag",
)  # fmt: skip
"""Where torch keeps the groups of a process."""


@contextmanager
def paper_ranks(size: int, rank: int = 0) -> Iterator[None]:
    """Be one rank of `size` within the context; of one, this process as it is.

    Raises:
        ConfigError: there is no such rank, or this process is one of several already.
    """
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(
            f"rank={rank} of world_size={size}: there is no such rank",
            fix=f"give a rank from 0 to {max(size, 1) - 1}",
        )
    if dist.is_initialized() or is_launched() or processes()[1] > 1:
        raise ConfigError(
            "ranks on paper, and this process is one of several that are real",
            fix="start the dry run alone, without a launcher",
        )
    if size == 1:
        yield
        return
    with ranks_aside(size, rank):
        yield


@contextmanager
def ranks_aside(size: int, rank: int) -> Iterator[None]:
    """Be one rank of `size` that are imagined; the process's real groups wait outside, unharmed."""
    # registers the backend; and what collectives do to shapes
    from torch.testing._internal.distributed.fake_pg import FakeStore

    real = {name: getattr(c10d, name) for name in _TABLES}
    default, count, hook = c10d._world.default_pg, c10d._world.group_count, sys.excepthook
    for name, table in real.items():
        setattr(c10d, name, type(table)())
    c10d._update_default_pg(None)
    # DTensor remembers meshes by their sizes, and these name groups that are not there
    _clear_sharding_prop_cache()
    try:
        # numbers of groups go on, for a name may be given once
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        yield
    finally:
        for group_name in c10d._pg_names.values():
            _unregister_process_group(group_name)
        for name, table in real.items():
            setattr(c10d, name, table)
        c10d._update_default_pg(default)
        # the same on all ranks, whatever has become of each one's walk
        c10d._world.group_count, sys.excepthook = count, hook
        _clear_sharding_prop_cache()


@contextmanager
def shapes_within(pause: AbstractContextManager) -> Iterator[None]:
    """Enter `pause` wherever DTensor asks for shapes of results: nobody makes those tensors."""
    ask = ShardingPropagator._propagate_tensor_meta_non_cached

    def ask_within(self: ShardingPropagator, op_schema: OpSchema) -> object:
        with pause:
            return ask(self, op_schema)

    ShardingPropagator._propagate_tensor_meta_non_cached = ask_within  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ShardingPropagator._propagate_tensor_meta_non_cached = ask


def block_outputs(engine: ModelEngine, inputs: Tensor) -> list[Tensor]:
    """Return what each block of an undivided model makes of `inputs`.

    Args:
        engine: the model, with fake weights.
        inputs: a micro-batch, fake.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in block_row(engine.module)]
    try:
        with torch.no_grad():
            engine(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def tell_shapes(parallel: ParallelModel, outputs: list[Tensor], inputs: Tensor) -> None:
    """Give a pipeline the shapes between its stages, which others would have told in a step.

    Args:
        parallel: the model as this rank computes it; its pipeline is made anew.
        outputs: of the blocks of the whole model, for a micro-batch; fake.
        inputs: a micro-batch, fake.
    """
    pipeline, plan = parallel.pipeline, parallel.world.plan
    if pipeline is None:
        return
    examples = []
    for stage in pipeline.stages:
        taken = inputs if stage.is_first else _stream(outputs[stage.block_ids[0] - 1], plan.cp)
        # what the last one returns goes nowhere: it may be of any shape
        examples.append((taken, _stream(outputs[stage.block_ids[-1]], plan.cp)))
    parallel.pipeline = type(pipeline)(
        pipeline.stages, pipeline.numbers, plan, parallel.world.device,
        parallel.world.group("pp"), examples,
    )  # fmt: skip
    parallel.pipeline.on_batch = pipeline.on_batch


def _stream(output: Tensor, cp: int) -> Tensor:
    """Return the like of what goes from a stage to the next: (B, T, D), T this rank's tokens."""
    shape = list(output.shape)
    if cp > 1:
        shape[1] = -(-shape[1] // cp)
    return output.new_empty(shape).requires_grad_()
