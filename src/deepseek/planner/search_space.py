"""What a search goes through: layouts, schedules, micro-batches, and the software they are for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from deepseek.planner.cluster import Cluster, Gpu
from deepseek.planner.footprint import count_usable_bytes
from deepseek.planner.host import count_usable_host_bytes
from deepseek.planner.parallel_plan import (
    Offload,
    ParallelPlan,
    Precision,
    Recompute,
    Schedule,
)
from deepseek.planner.prediction import Prediction
from deepseek.planner.shape import TransformerShape

Software = Literal["deepseek", "megatron"]
POLICIES: tuple[Recompute, ...] = ("none", "pointwise", "selective", "full")
"""From the fastest to the smallest."""
SCHEDULES: tuple[Schedule, ...] = ("1f1b", "interleaved_1f1b")
"""Those that the planner was held against measurements of. `gpipe` waits as long as `1f1b`, and
`looped_bfs` as `interleaved_1f1b`, and they keep more; zero-bubble ones are costed if asked for."""
MEMORY_SHARE = 0.9
"""Of the device that a plan may take: allocators are slow near the end of it, by an amount that is
not modelled."""
ALL_SCHEDULES: tuple[Schedule, ...] = (
    *("gpipe", "1f1b", "interleaved_1f1b", "looped_bfs"),
    *("interleaved_zero_bubble", "zbv_zero_bubble"),
)
OFFLOADS: tuple[Offload, ...] = ("optimizer", "parameters")
"""What may wait on the host where nothing fits otherwise."""
TOKENS_PER_CP = 4096
"""A rank of `cp` has at least so many tokens of a sequence: shorter parts are not searched."""


class Layout(NamedTuple):
    """Degrees of the axes."""

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    pp: int


@dataclass(frozen=True)
class SearchSpace:
    """What may be chosen, and what may not.

    Attributes:
        software: that will run the plan. `deepseek`: this framework with `graph: static`; ranks
            that keep whole weights keep whole optimizer states. `megatron`: states divided between
            the copies (distributed optimizer), fused loss, gradients summed in the product.
        precision: of matrix products.
        axes: degrees that are fixed, by name of the axis.
        policies: of recomputation.
        schedules: of pipelines.
        virtual_stages: on each pipeline rank; 0: all that divide the layers.
        micro_batch_size: samples; 0: any that divides.
        max_tp: largest `tp`; 0: the GPUs of a node.
        memory_share: of the device's memory that a plan may take, 0..1.
        is_fused: whether graphs are static, where the schedule can have it so.
        offload: what waits on the host; `auto`: nothing, or what is fastest where nothing fits
            otherwise (not in fp16, nor for Megatron-LM, whose ways are others).
    """

    software: Software = "deepseek"
    precision: Precision = "bf16"
    axes: Mapping[str, int] = field(default_factory=dict)
    policies: tuple[Recompute, ...] = POLICIES
    schedules: tuple[Schedule, ...] = SCHEDULES
    virtual_stages: int = 0
    micro_batch_size: int = 0
    max_tp: int = 0
    memory_share: float = MEMORY_SHARE
    is_fused: bool = True
    offload: Offload | Literal["auto"] = "auto"

    def offloads(self) -> list[tuple[Offload, ...]]:
        """Return what may wait on the host: the next where nothing fits with the one before."""
        if self.offload != "auto":
            return [(self.offload,)]
        may_wait = self.software == "deepseek" and self.precision != "fp16"
        return [("none",), OFFLOADS] if may_wait else [("none",)]

    def limit_bytes(self, gpu: Gpu) -> float:
        """Return the bytes of `gpu` that a plan may take."""
        return min(count_usable_bytes(gpu), self.memory_share * gpu.memory_bytes)

    def lack_bytes(self, cluster: Cluster, prediction: Prediction) -> float:
        """Return the bytes that a plan has too many on a device, or on its share of the host."""
        device = prediction.peak_bytes - self.limit_bytes(cluster.gpu)
        return max(0.0, device, prediction.host_bytes - count_usable_host_bytes(cluster.host))


@lru_cache(maxsize=1024)
def list_divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of `number`, the least first."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def list_layouts(
    shape: TransformerShape, cluster: Cluster, batch_size: int, space: SearchSpace
) -> list[Layout]:
    """Return the layouts over all GPUs whose degrees divide what they must."""
    layouts = []
    for tp in _list_tp(shape, cluster, space):
        for cp in _list_cp(shape, cluster.num_gpus // tp, space):
            for pp in _choose(space, "pp", list_divisors(cluster.num_gpus // tp // cp)):
                shares, rest = divmod(cluster.num_gpus, tp * cp * pp)
                if rest or shares == 0 or pp > shape.num_layers or batch_size % shares:
                    continue
                for shard in _choose(space, "dp_shard", list_divisors(shares)):
                    copies, rest = divmod(shares, shard)
                    if rest == 0 and copies == space.axes.get("dp_replicate", copies):
                        layouts.append(Layout(copies, shard, cp, tp, pp))
    return layouts


def _choose(space: SearchSpace, axis: str, options: tuple[int, ...]) -> tuple[int, ...]:
    return (space.axes[axis],) if axis in space.axes else options


def _list_tp(shape: TransformerShape, cluster: Cluster, space: SearchSpace) -> list[int]:
    most = space.max_tp or cluster.gpus_per_node
    fits = [d for d in list_divisors(cluster.num_gpus) if d <= most]
    sizes = (shape.heads, shape.kv_heads, shape.hidden_dim, shape.dim)
    return [
        tp
        for tp in _choose(space, "tp", tuple(fits))
        if "tp" in space.axes or not any(size % tp for size in sizes)
    ]


def _list_cp(shape: TransformerShape, num_gpus: int, space: SearchSpace) -> tuple[int, ...]:
    length = shape.context_length
    options = (
        cp
        for cp in list_divisors(num_gpus)
        if cp == 1 or (cp <= length // TOKENS_PER_CP and length % (2 * cp) == 0)
    )
    return _choose(space, "cp", tuple(options))


def list_forms(
    shape: TransformerShape, layout: Layout, space: SearchSpace, offloads: Sequence[Offload]
) -> Iterator[ParallelPlan]:
    """Yield plans of a layout: each schedule, tokens divided by `tp` or not, each of `offloads`."""
    is_single = space.precision == "fp32"  # whose products take the weights as they are
    tokens = shape.context_length // layout.cp
    divides = (True, False) if layout.tp > 1 and tokens % layout.tp == 0 else (False,)
    for schedule, stages in _list_pipelines(shape, layout.pp, space):
        for sequence_parallel in divides:
            plan = ParallelPlan(
                **layout._asdict(),
                sequence_parallel=sequence_parallel,
                schedule=schedule,
                virtual_stages=stages,
                precision=space.precision,
                weight_bytes=4.0 if is_single else 2.0,
                master_bytes=0.0 if is_single else 4.0,
            )
            for offload in offloads:
                if offload != "parameters" or may_hold_shards(layout):
                    yield replace(adapt_plan(plan, space), offload=offload)


def may_hold_shards(layout: Layout) -> bool:
    """Return whether the host may hold the parameters: parts of them, under `dp_shard` alone."""
    return layout.dp_shard > 1 and layout.tp == 1


def _list_pipelines(
    shape: TransformerShape, pp: int, space: SearchSpace
) -> Iterator[tuple[Schedule, int]]:
    if pp == 1:
        yield "1f1b", 1
        return
    each, rest = divmod(shape.num_layers, pp)
    for schedule in space.schedules:
        if schedule in ("1f1b", "gpipe"):
            options: tuple[int, ...] = (1,)
        elif schedule == "zbv_zero_bubble":
            options = (2,) if 2 * pp <= shape.num_layers else ()
        else:
            options = tuple(v for v in list_divisors(each) if v > 1) if rest == 0 else ()
        for stages in options:
            if space.virtual_stages in (0, stages):
                yield schedule, stages


def adapt_plan(plan: ParallelPlan, space: SearchSpace) -> ParallelPlan:
    """Return `plan` with what the software of `space` does of its own accord."""
    if space.software == "megatron":
        return replace(plan, shards_optimizer=True, stops_early=False, is_loss_fused=True)
    return replace(
        plan,
        adds_in_product=False,
        keeps_gathered=True,
        stream_bytes=4.0 if plan.dp_shard == 1 else 0.0,
        # A pipeline keeps gathered weights, and reduces gradients after its last micro-batch.
        overlaps_dp=plan.pp == 1,
        # These schedules split the backward pass, which a static graph has as one.
        is_fused=space.is_fused and ("zero_bubble" not in plan.schedule or plan.pp == 1),
    )


def list_micro_batches(
    plan: ParallelPlan, batch_size: int, space: SearchSpace
) -> Iterator[tuple[int, int]]:
    """Yield (samples of a micro-batch, micro-batches of a rank), the smallest first."""
    share = batch_size // (plan.dp_replicate * plan.dp_shard)
    for size in list_divisors(share):
        count = share // size
        if space.micro_batch_size not in (0, size):
            continue
        if plan.pp > 1 and count < plan.pp * plan.virtual_stages:
            continue
        if plan.virtual_stages > 1 and count % plan.pp:
            continue
        yield size, count
