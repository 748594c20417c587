"""Search: every plan that fits, ranked by the seconds of a step, and the nearest that do not.

A layout (degrees of the axes) is costed with each schedule and micro-batch size, each with the
first policy of recomputation that fits: what keeps less takes longer. Left out are layouts that do
not fit even with the least, and micro-batches larger than two that were slower already. Where no
layout fits, all are costed once more with optimizer state, or parameters, on the host.

Plans closer than the planner's own error are not told apart by it: of those the one with the fewest
axes is the choice, and whole weights before divided ones.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.plan_text import AXES, name_family
from deepseek.planner.predict import predict
from deepseek.planner.prediction import Prediction
from deepseek.planner.search_space import (
    SearchSpace,
    list_forms,
    list_layouts,
    list_micro_batches,
    may_hold_shards,
)
from deepseek.planner.shape import TransformerShape

TIE_SHARE = 0.03
"""Of a step: less than the planner's mean error (`deepseek.planner.accuracy`)."""

Progress = Callable[[int, int], None]
"""Called with layouts done and layouts in all."""


@dataclass(frozen=True)
class Candidate:
    """A plan and what it takes."""

    plan: ParallelPlan
    prediction: Prediction

    @property
    def family(self) -> str:
        """Its axes, `fsdp-tp`."""
        return name_family(self.plan)

    @property
    def num_axes(self) -> int:
        """How many axes have more than one rank."""
        return sum(getattr(self.plan, axis) > 1 for axis in AXES)


@dataclass
class Candidates:
    """What a search found.

    Attributes:
        ranked: the best plan of every layout that fits, the fastest first.
        nearest: of each family of layouts with plans that do not fit, the one that needs the least.
        num_costed: plans that were costed.
        num_layouts: layouts that divide what they must.
        search_s: seconds the search took.
        without_host: where nothing fits unless something waits on the host: what comes nearest.
    """

    ranked: list[Candidate] = field(default_factory=list)
    nearest: dict[str, Candidate] = field(default_factory=dict)
    num_costed: int = 0
    num_layouts: int = 0
    search_s: float = 0.0
    without_host: Candidate | None = None

    @property
    def best(self) -> Candidate | None:
        """The plan to take: of those as fast as the fastest, within the error, the simplest."""
        if not self.ranked:
            return None
        most_s = (1 + TIE_SHARE) * self.ranked[0].prediction.step_s
        ties = [c for c in self.ranked if c.prediction.step_s <= most_s]
        return min(ties, key=lambda c: (c.num_axes, c.plan.dp_shard > 1, c.prediction.step_s))

    @property
    def least(self) -> Candidate | None:
        """Of those that do not fit, the one that needs the least memory."""
        return min(self.nearest.values(), key=lambda c: c.prediction.peak_bytes, default=None)

    def families(self) -> dict[str, Candidate]:
        """The best of each family: the fastest that fits, else the one that needs the least."""
        best = dict(self.nearest)
        for candidate in reversed(self.ranked):
            best[candidate.family] = candidate
        return best


def search(
    shape: TransformerShape,
    cluster: Cluster,
    batch_size: int,
    space: SearchSpace = SearchSpace(),  # noqa: B008 (frozen)
    on_progress: Progress | None = None,
) -> Candidates:
    """Cost the plans of `space` for steps of `batch_size` sequences on all GPUs of `cluster`.

    Args:
        shape: sizes of the transformer.
        cluster: GPUs and links.
        batch_size: sequences of an optimizer step, over all ranks.
        space: what may be chosen.
        on_progress: told of each layout that is done.

    Raises:
        ConfigError: no layout divides the GPUs, the model and the batch as it must, or every one
            that does breaks a rule.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(
            f"batch_size={batch_size} must be a whole number of 1 or more",
            fix="set batch_size to the sequences of an optimizer step",
        )
    start = time.perf_counter()
    layouts = list_layouts(shape, cluster, batch_size, space)
    if not layouts:
        _raise_undivided(shape, cluster, batch_size, space)
    if space.offload == "parameters" and not any(map(may_hold_shards, layouts)):
        _raise_unsharded(cluster, space)
    found = Candidates(num_layouts=len(layouts))
    refused: ConfigError | None = None
    for offloads in space.offloads():
        forms = partial(list_forms, shape, space=space, offloads=offloads)
        for done, layout in enumerate(layouts):
            try:
                best = _search_layout(shape, cluster, batch_size, space, forms(layout), found)
            except ConfigError as error:
                refused = refused or error
                continue
            if best is not None:
                found.ranked.append(best)
            if on_progress is not None:
                on_progress(done + 1, len(layouts))
        if found.ranked:
            break
        if offloads == ("none",):
            found.without_host = found.least
    if refused is not None and not found.ranked and not found.nearest:
        raise refused
    if not found.num_costed:
        _raise_uncut(shape, cluster, batch_size, space)
    found.ranked.sort(key=lambda c: (c.prediction.step_s, c.num_axes))
    found.search_s = time.perf_counter() - start
    return found


def _search_layout(
    shape: TransformerShape,
    cluster: Cluster,
    batch_size: int,
    space: SearchSpace,
    forms: Iterable[ParallelPlan],
    found: Candidates,
) -> Candidate | None:
    """The fastest plan of a layout that fits; those that do not are noted in `found`."""
    best: Candidate | None = None
    for form in forms:
        worse, fastest_s = 0, float("inf")
        for size, count in list_micro_batches(form, batch_size, space):
            plan = replace(form, micro_batch_size=size, num_micro_batches=count)
            candidate = _fit(shape, cluster, plan, space, found)
            if candidate is None:
                break
            step_s = candidate.prediction.step_s
            worse = worse + 1 if step_s > fastest_s else 0
            fastest_s = min(fastest_s, step_s)
            if best is None or step_s < best.prediction.step_s:
                best = candidate
            if worse == 2:
                break
    return best


def _fit(
    shape: TransformerShape,
    cluster: Cluster,
    plan: ParallelPlan,
    space: SearchSpace,
    found: Candidates,
) -> Candidate | None:
    """`plan` with the fastest policy that fits; else the least it needs goes to `found.nearest`."""
    least: Candidate | None = None
    policies = space.policies
    # What does not fit with the least kept is not costed with more.
    for policy in (policies[-1], *policies[:-1]):
        plan = replace(plan, recompute=policy)
        candidate = Candidate(plan, predict(shape, cluster, plan))
        found.num_costed += 1
        if policy == policies[-1]:
            least = candidate
            if space.lack_bytes(cluster, candidate.prediction) > 0:
                break
        elif space.lack_bytes(cluster, candidate.prediction) == 0:
            return candidate
    if least is None or (lack := space.lack_bytes(cluster, least.prediction)) == 0:
        return least
    known = found.nearest.get(least.family)
    if known is None or lack < space.lack_bytes(cluster, known.prediction):
        found.nearest[least.family] = least
    return None


def _raise_undivided(
    shape: TransformerShape, cluster: Cluster, batch_size: int, space: SearchSpace
) -> None:
    asked = _say_axes(space)
    raise ConfigError(
        f"num_gpus={cluster.num_gpus} cannot be divided for batch_size={batch_size},"
        f" num_layers={shape.num_layers}, heads={shape.heads}, kv_heads={shape.kv_heads}"
        + (f" and {asked}" if asked else "")
        + ": the ranks that share a batch must divide it, tp heads and kv_heads, pp at most"
        " num_layers.",
        fix=f"use a multiple of {cluster.num_gpus} sequences as batch, or another number of GPUs",
    )


def _say_axes(space: SearchSpace) -> str:
    return ", ".join(f"{axis}={degree}" for axis, degree in space.axes.items() if degree > 1)


def _raise_unsharded(cluster: Cluster, space: SearchSpace) -> None:
    asked = _say_axes(space)
    raise ConfigError(
        f"offload=parameters on num_gpus={cluster.num_gpus}"
        + (f" with {asked}" if asked else "")
        + ": parts of weights wait on the"
        " host under dp_shard alone, and no layout has dp_shard above 1 and tp=1.",
        fix="use more GPUs, dp_shard above 1 and tp=1, or offload=optimizer",
    )


def _raise_uncut(
    shape: TransformerShape, cluster: Cluster, batch_size: int, space: SearchSpace
) -> None:
    asked = f" of {space.micro_batch_size} sequences" if space.micro_batch_size else ""
    raise ConfigError(
        f"batch_size={batch_size} on num_gpus={cluster.num_gpus} cannot be cut into"
        f" micro-batches{asked} that fill the stages of a pipeline of {', '.join(space.schedules)}"
        f" (stages of interleaved ones divide num_layers={shape.num_layers}).",
        fix="raise the batch, or allow another micro-batch size, schedule or number of stages",
    )
