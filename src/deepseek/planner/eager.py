"""Bytes that PyTorch keeps where it computes operator by operator, beside those of fused kernels.

Held against steps that are walked on paper, operator by operator (`docs/dry_run.md`).
"""

from collections.abc import Sequence

from deepseek.planner.parallel_plan import EagerBytes, ParallelPlan
from deepseek.planner.shape import TransformerShape


def count_block_extra(shape: TransformerShape, plan: ParallelPlan, eager: EagerBytes) -> float:
    """Bytes that a block keeps for a micro-batch: masks, scores."""
    extra = 0.0
    if shape.dropout:
        whole = _count_tokens(shape, plan) * shape.dim / (plan.tp if plan.sequence_parallel else 1)
        extra = 2 * whole * (eager.mask - 1)
    return extra + count_scores(shape, plan) * eager.score


def count_scores(shape: TransformerShape, plan: ParallelPlan) -> float:
    """Scores of attention of a block, all heads of a rank.

    With a causal mask a rank of `cp` has two runs of queries, and for each the keys up to its end.
    """
    scores = _count_tokens(shape, plan) * shape.context_length * shape.heads / plan.tp
    if plan.cp > 1 and shape.is_causal:
        scores *= (2 * plan.cp + 1) / (4 * plan.cp)
    return scores


def count_score_work(shape: TransformerShape, plan: ParallelPlan, eager: EagerBytes) -> float:
    """Bytes of gradients of scores, where they are more than what is gone of the block by then."""
    features = _count_tokens(shape, plan) * shape.active_experts * shape.hidden_dim / plan.tp
    gone = plan.item_bytes * features * (4 if shape.is_gated else 2)
    return max(0.0, count_scores(shape, plan) * eager.score_work - gone)


def count_rank_extra(shape: TransformerShape, plan: ParallelPlan, rank: int, held: float) -> float:
    """Bytes that a rank keeps beside its blocks: at the ends of the model and of its stages.

    Args:
        shape: sizes of the model.
        plan: of the run.
        rank: of the pipeline.
        held: micro-batches that it has in flight.
    """
    stream = plan.stream * _count_tokens(shape, plan) * shape.dim
    stages, last = _list_stages(plan, rank), plan.pp * plan.virtual_stages - 1
    extra = 0.0
    if 0 in stages and shape.dropout:
        extra += held * stream  # the mask of the embedding's
    if last in stages:  # the last norm: what it takes and what it makes
        extra += stream * (1 + plan.item_bytes / plan.stream)
    if plan.pp > 1:
        # in the turn of a V the next stage takes the tensor itself
        hands_on = sum(stage < last and stage + 1 not in stages for stage in stages)
        receives = sum(stage > 0 for stage in stages) + sum(stage < last for stage in stages)
        # a buffer for each micro-batch; those in flight are the first norm's input
        shared = 0 if plan.sequence_parallel and plan.tp > 1 else min(held, plan.num_micro_batches)
        first = sum(stage > 0 for stage in stages) / len(stages)
        extra += stream * (receives * plan.num_micro_batches - first * shared + 1)
        extra += stream * held * hands_on  # what a stage makes stays until it goes backward
    return extra


def _list_stages(plan: ParallelPlan, rank: int) -> Sequence[int]:
    if plan.schedule == "zbv_zero_bubble" and plan.pp > 1:
        return (rank, 2 * plan.pp - 1 - rank)
    return range(rank, plan.pp * plan.virtual_stages, plan.pp)


def _count_tokens(shape: TransformerShape, plan: ParallelPlan) -> float:
    return plan.micro_batch_size * shape.context_length / plan.cp
