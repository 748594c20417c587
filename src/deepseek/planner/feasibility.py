"""Plans that cannot run: every broken rule of a plan, collected and raised once."""

from typing import get_args

from deepseek.errors import ConfigError
from deepseek.planner.cluster import Cluster
from deepseek.planner.parallel_plan import (
    Attention,
    Offload,
    ParallelPlan,
    Precision,
    Recompute,
    Schedule,
)
from deepseek.planner.pipeline import LOOPED
from deepseek.planner.shape import TransformerShape

_COUNTS = (
    "dp_replicate",
    "dp_shard",
    "tp",
    "pp",
    "cp",
    "virtual_stages",
    "micro_batch_size",
    "num_micro_batches",
)
_NAMES = {
    "recompute": get_args(Recompute),
    "precision": get_args(Precision),
    "attention": get_args(Attention),
    "schedule": get_args(Schedule),
    "offload": get_args(Offload),
}
_BYTES = ("weight_bytes", "gradient_bytes", "master_bytes", "state_bytes")


def check_plan(model: TransformerShape, cluster: Cluster, plan: ParallelPlan) -> None:
    """Raise if `plan` cannot run.

    Raises:
        ConfigError: with every rule that is broken, and a fix for each.
    """
    problems = [
        (
            f"{name}={getattr(plan, name)} must be a whole number of 1 or more.",
            f"set {name} to 1 or more",
        )
        for name in _COUNTS
        if not isinstance(getattr(plan, name), int) or getattr(plan, name) < 1
    ]
    problems += _find_value_problems(plan)
    if not problems:
        problems = [
            *_find_size_problems(model, cluster, plan),
            *_find_pipeline_problems(model, plan),
            *_find_offload_problems(plan),
        ]
    if problems:
        raise ConfigError(
            "\n".join(message for message, _ in problems), fix="; ".join(fix for _, fix in problems)
        )


def _find_value_problems(plan: ParallelPlan) -> list[tuple[str, str]]:
    """Names that there are not, and quantities that cannot be."""
    problems = [
        (f"{name}={getattr(plan, name)} is none of {', '.join(known)}.", "use one of them")
        for name, known in _NAMES.items()
        if getattr(plan, name) not in known
    ]
    problems += [
        (f"{name}={getattr(plan, name)} is below 0.", f"set {name} to 0 or more")
        for name in _BYTES
        if getattr(plan, name) < 0
    ]
    if not 0 <= plan.selective_products <= 1:
        problems.append(
            (
                f"selective_products={plan.selective_products} is no share.",
                "set selective_products between 0 and 1",
            )
        )
    return problems


def _find_size_problems(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan
) -> list[tuple[str, str]]:
    """Degrees against the sizes of the model, the cluster and the GPU."""
    problems = []
    if plan.world_size != cluster.num_gpus:
        is_more = plan.world_size > cluster.num_gpus
        problems.append(
            (
                f"plan needs dp_replicate * dp_shard * tp * pp * cp = {plan.world_size} GPUs and"
                f" num_gpus={cluster.num_gpus}.",
                "lower a degree or add GPUs"
                if is_more
                else f"raise a degree, or say that only some are meant: num_gpus={plan.world_size}",
            )
        )
    for name, size in (
        ("heads", model.heads),
        ("hidden_dim", model.hidden_dim),
        ("dim", model.dim),
    ):
        if size % plan.tp:
            problems.append(
                (f"tp={plan.tp} does not divide {name}={size}.", f"use a tp that divides {name}")
            )
    if model.kv_heads % plan.tp and plan.tp % model.kv_heads:
        problems.append(
            (
                f"tp={plan.tp} and kv_heads={model.kv_heads}: neither divides the other.",
                "use a tp that divides kv_heads, or a multiple of it",
            )
        )
    if model.context_length % (2 * plan.cp if plan.cp > 1 else 1):
        problems.append(
            (
                f"2 * cp={2 * plan.cp} does not divide context_length={model.context_length}.",
                "use a cp whose double divides the sequence",
            )
        )
    if plan.precision not in cluster.gpu.matmul_flops:
        known = ", ".join(cluster.gpu.matmul_flops)
        problems.append(
            (
                f"precision={plan.precision} is not among those of {cluster.gpu.name}: {known}.",
                f"use one of {known}",
            )
        )
    if not 0 <= plan.recompute_share <= 1:
        problems.append(
            (
                f"recompute_share={plan.recompute_share} is not in 0..1.",
                "give a share of the blocks",
            )
        )
    return problems


def _find_offload_problems(plan: ParallelPlan) -> list[tuple[str, str]]:
    """What waits on the host against the axes."""
    if plan.offload == "parameters" and (plan.dp_shard == 1 or plan.tp > 1):
        return [
            (
                f"offload=parameters with dp_shard={plan.dp_shard} and tp={plan.tp}: parts of"
                " weights wait on the host under dp_shard alone, without tp.",
                "set dp_shard above 1 and tp=1, or offload=optimizer",
            )
        ]
    return []


STAGES_WITHOUT_BLOCK = 2
"""The first may have the embedding alone, the last the head, as in Llama 3 405B: 126 blocks."""


def _find_pipeline_problems(model: TransformerShape, plan: ParallelPlan) -> list[tuple[str, str]]:
    """Stages against layers, micro-batches and the schedule."""
    problems = []
    stages = plan.pp * plan.virtual_stages
    if stages > model.num_layers + STAGES_WITHOUT_BLOCK:
        problems.append(
            (
                f"pp * virtual_stages = {stages} stages and num_layers={model.num_layers}.",
                "lower pp or virtual_stages: stages between the first and the last need a block",
            )
        )
    if plan.virtual_stages > 1 and plan.schedule not in LOOPED:
        problems.append(
            (
                f"virtual_stages={plan.virtual_stages} and schedule={plan.schedule}, which has one"
                " stage on each rank.",
                "use interleaved_1f1b, or virtual_stages=1",
            )
        )
    if plan.schedule == "zbv_zero_bubble" and plan.pp > 1 and plan.virtual_stages != 2:
        problems.append(
            (
                f"virtual_stages={plan.virtual_stages} and schedule=zbv_zero_bubble, whose V has"
                " two stages on each rank.",
                "set virtual_stages=2",
            )
        )
    if plan.virtual_stages > 1 and plan.pp > 1:
        rounds = max(1, plan.num_micro_batches // plan.pp)
        if plan.num_micro_batches % rounds:
            problems.append(
                (
                    f"num_micro_batches={plan.num_micro_batches} is not a multiple of pp={plan.pp},"
                    f" which schedule={plan.schedule} walks in rounds.",
                    f"use {plan.pp * rounds} micro-batches",
                )
            )
    return problems
