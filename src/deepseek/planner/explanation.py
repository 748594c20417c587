"""Why a plan lost: it does not fit, by so many GiB of what; or a part of its step is longer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.host import count_usable_host_bytes
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.plan_text import describe_axes, describe_pipeline
from deepseek.planner.predict import predict
from deepseek.planner.prediction import Prediction
from deepseek.planner.search import TIE_SHARE, Candidate, Candidates
from deepseek.planner.search_space import OFFLOADS, POLICIES, SearchSpace, adapt_plan
from deepseek.planner.shape import TransformerShape

GIB = 2**30
PARTS = {
    "compute": "smaller products",
    "recompute": "recomputation",
    "tp": "tensor-parallel sums",
    "cp": "keys and values going round",
    "pp": "sends between stages",
    "dp": "gathering weights and reducing gradients",
    "bubble": "bubble",
    "optimizer": "optimizer and summing gradients",
    "host": "copies between device and host, and the host's own work",
}
"""Parts of a step as the reason of a loss."""


@dataclass(frozen=True)
class Loss:
    """A plan that is not the choice.

    Attributes:
        name: family of axes, or what is changed against the choice.
        candidate: the best of its kind.
        why: reason, in words.
        fits: whether it fits the device.
    """

    name: str
    candidate: Candidate
    why: str
    fits: bool


def explain_families(found: Candidates, cluster: Cluster, space: SearchSpace) -> list[Loss]:
    """Return the best plan of every family of axes but the choice's, and why it lost."""
    best = found.best or found.least
    if best is None:
        return []
    losses = [
        _judge(name, candidate, best, cluster, space)
        for name, candidate in found.families().items()
        if name != best.family
    ]
    return sorted(losses, key=_rank)


def explain_changes(
    shape: TransformerShape, cluster: Cluster, best: Candidate, space: SearchSpace
) -> list[Loss]:
    """Return the choice with one thing changed each, and why that is worse."""
    losses = []
    for name, plan in _list_changes(shape, best.plan, space):
        try:
            candidate = Candidate(plan, predict(shape, cluster, plan))
        except ConfigError:
            continue  # a change that breaks a rule is no alternative
        loss = _judge(name, candidate, best, cluster, space)
        if plan.schedule not in space.schedules and loss.fits:
            loss = replace(loss, why=f"{loss.why} (on paper: never held against a measurement)")
        losses.append(loss)
    return losses


def _list_changes(
    shape: TransformerShape, plan: ParallelPlan, space: SearchSpace
) -> Iterator[tuple[str, ParallelPlan]]:
    for policy in POLICIES:
        if policy != plan.recompute:
            yield f"recompute {policy}", replace(plan, recompute=policy)
    for offload in ("none", *OFFLOADS) if plan.offload != "none" else ():
        if offload != plan.offload:
            yield f"offload {offload}", replace(plan, offload=offload)
    size, count = plan.micro_batch_size, plan.num_micro_batches
    if count % 2 == 0:
        yield (
            f"micro-batch {2 * size}",
            replace(plan, micro_batch_size=2 * size, num_micro_batches=count // 2),
        )
    if size % 2 == 0:
        yield (
            f"micro-batch {size // 2}",
            replace(plan, micro_batch_size=size // 2, num_micro_batches=2 * count),
        )
    if plan.tp > 1:
        other = not plan.sequence_parallel
        yield (
            f"sequence parallel {'on' if other else 'off'}",
            replace(plan, sequence_parallel=other),
        )
    if plan.pp > 1:
        each = shape.num_layers // plan.pp
        for schedule, stages in (("1f1b", 1), ("interleaved_1f1b", each), ("zbv_zero_bubble", 2)):
            if schedule == plan.schedule or (stages == 1) != (schedule == "1f1b"):
                continue
            other = replace(plan, schedule=schedule, virtual_stages=stages)
            yield describe_pipeline(other), adapt_plan(other, space)


def _judge(
    name: str, candidate: Candidate, best: Candidate, cluster: Cluster, space: SearchSpace
) -> Loss:
    if space.lack_bytes(cluster, candidate.prediction) > 0:
        return Loss(name, candidate, say_overflow(candidate, cluster, space), fits=False)
    why = say_slowness(candidate.prediction, best.prediction)
    if candidate.num_axes > best.num_axes and candidate.prediction.step_s < best.prediction.step_s:
        why += f": within {TIE_SHARE:.0%}, which cannot be told apart, and one axis more"
    return Loss(name, candidate, why, fits=True)


def _rank(loss: Loss) -> tuple[bool, float]:
    prediction = loss.candidate.prediction
    return not loss.fits, prediction.step_s if loss.fits else prediction.peak_bytes


def find_worst_rank(prediction: Prediction) -> int:
    """Return the pipeline rank that needs the most memory."""
    sums = [sum(rank.values()) for rank in prediction.memory]
    return sums.index(max(sums))


def say_overflow(candidate: Candidate, cluster: Cluster, space: SearchSpace) -> str:
    """Return by how much a plan does not fit, and of what there is most."""
    over_bytes = candidate.prediction.peak_bytes - space.limit_bytes(cluster.gpu)
    if over_bytes <= 0:
        has = count_usable_host_bytes(cluster.host)
        return (
            f"does not fit: {candidate.prediction.host_bytes / GIB:,.1f} GiB of the host's memory"
            f" for each GPU, and there are {has / GIB:,.1f}"
        )
    memory = candidate.prediction.memory[find_worst_rank(candidate.prediction)]
    largest = max(memory, key=lambda name: memory[name])
    return (
        f"does not fit: {over_bytes / GIB:,.1f} GiB too many, most of it {largest}"
        f" ({memory[largest] / GIB:,.1f} GiB)"
    )


def say_slowness(loser: Prediction, winner: Prediction) -> str:
    """Return how much longer a step is, and which parts of it are, the most important first."""
    share = loser.step_s / winner.step_s - 1
    rises = {name: loser.time_s[name] - winner.time_s[name] for name in PARTS}
    parts = sorted((name for name in rises if rises[name] > 0), key=lambda name: -rises[name])
    # What explains less than a tenth of the rise, or nothing that could be measured, is left out.
    told = [name for name in parts if rises[name] >= 0.1 * rises[parts[0]]][:3]
    words = ", ".join(f"{PARTS[name]} +{rises[name]:.3g} s" for name in told)
    if share <= 0:
        return f"{-share:.1%} faster"
    return f"{share:.1%} slower: {words}"


def say_plan(plan: ParallelPlan) -> str:
    """Return a plan in one line."""
    parts = [describe_axes(plan)]
    if plan.pp > 1:
        parts.append(describe_pipeline(plan))
    parts.append(f"{plan.num_micro_batches} x {plan.micro_batch_size}")
    parts.append(f"recompute {plan.recompute}")
    if plan.offload != "none":
        parts.append(f"offload {plan.offload}")
    return ", ".join(parts)
