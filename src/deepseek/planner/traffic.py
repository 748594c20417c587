"""Bytes that a rank sends in a step, by axis, as `predict` costs them.

A ring over n ranks moves (n - 1) / n of the bytes out of each rank, twice for an all-reduce.
"""

from deepseek.planner.flops import count_weights
from deepseek.planner.footprint import count_rank_weights, count_shards
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.pipeline import divide_layers
from deepseek.planner.shape import TransformerShape


def count_sent(model: TransformerShape, plan: ParallelPlan, pp_rank: int = 0) -> dict[str, float]:
    """Bytes that a rank sends in a step, for `tp`, `cp`, `pp` and `data`; 0 for an axis of one.

    Args:
        model: sizes of the transformer.
        plan: degrees, micro-batches, recomputation, precision.
        pp_rank: place of the rank in its pipeline.
    """
    layers = divide_layers(model.num_layers, plan.pp, plan.virtual_stages, plan.schedule)[pp_rank]
    local = count_rank_weights(model, count_weights(model), plan)[pp_rank]
    passes = plan.num_micro_batches * layers
    boundary = count_boundary_bytes(model, plan)
    sums = 2 * count_sums(plan) + (2 if plan.sequence_parallel else 0)
    return {
        "tp": passes * sums * boundary * _share(plan.tp),
        "cp": passes * (count_context_passes(plan) + 2) * count_context_bytes(model, plan)
        * _share(plan.cp),
        "pp": plan.num_micro_batches * _count_sends(plan, pp_rank) * boundary / plan.tp,
        "data": _count_data_bytes(plan, local),
    }  # fmt: skip


def count_boundary_bytes(model: TransformerShape, plan: ParallelPlan) -> float:
    """Bytes of what one block hands to the next, for a micro-batch."""
    tokens = plan.micro_batch_size * model.context_length / plan.cp
    return (4 if plan.precision == "fp32" else 2) * tokens * model.dim


def count_sums(plan: ParallelPlan) -> float:
    """A block's sums over `tp`: two forward, two backward, more in a recompute."""
    again = 1.0 if plan.stops_early else 2.0
    return 4.0 + (again * plan.recompute_share if plan.recompute == "full" else 0.0)


def count_context_bytes(model: TransformerShape, plan: ParallelPlan) -> float:
    """Bytes of a block's keys and values of all tokens, for a micro-batch."""
    item = 4 if plan.precision == "fp32" else 2
    samples_tokens = plan.micro_batch_size * model.context_length
    return item * 2 * samples_tokens * model.kv_heads * model.head_dim / plan.tp


def count_context_passes(plan: ParallelPlan) -> float:
    """How often keys and values go round `cp` on the way forward."""
    return 2.0 if plan.recompute == "full" else 1.0


def count_rounds(plan: ParallelPlan) -> tuple[int, int]:
    """How often a step gathers all weights of a rank, and reduces all its gradients.

    A pipeline stage reduces after its last micro-batch only. It gathers once if it keeps weights,
    or if all micro-batches pass a stage before the next.
    """
    if plan.pp == 1:
        return plan.num_micro_batches, plan.num_micro_batches
    if not plan.frees_weights or plan.schedule in ("gpipe", "looped_bfs"):
        return 1, 1
    return plan.num_micro_batches, 1


def _count_sends(plan: ParallelPlan, pp_rank: int) -> int:
    """Sends of a micro-batch: each stage of a rank to the next and to the one before."""
    if plan.pp == 1:
        return 0
    ends = (pp_rank == 0) + (pp_rank == plan.pp - 1)
    if plan.schedule == "zbv_zero_bubble":
        # both ends of the V are on the first rank, and its turn on the last
        ends = 2
    return 2 * plan.virtual_stages - ends


def _count_data_bytes(plan: ParallelPlan, local: float) -> float:
    """Of gathering weights and reducing gradients, `local` weights on a rank before sharding."""
    shards = count_shards(plan)
    if shards == 1:
        back = plan.weight_bytes if plan.shards_optimizer else plan.gradient_bytes
        copies = plan.dp_replicate * plan.cp
        return (plan.gradient_bytes + back) * local * _share(copies)
    gathers, reductions = count_rounds(plan)
    weights, gradients = plan.weight_bytes * local, plan.gradient_bytes * local
    gathered = gathers * weights * (2 if plan.frees_weights else 1)
    copies = 2 * reductions * gradients / shards * _share(plan.dp_replicate)
    return (gathered + reductions * gradients) * _share(shards) + copies


def _share(size: int) -> float:
    return (size - 1) / size
