"""Bytes of a plan by category on each pipeline rank.

Activations follow Korthikanti et al. (2022, arXiv:2205.05198), equations 1 to 6, in general form:
with 16-bit activations, `4 * dim` features, dropout and plain attention a block keeps
`tokens * dim * (10 + 24 / tp + 5 * heads * length / (dim * tp))` bytes. An activation needed by two
products is counted once; what is kept in fp32 by an eager norm is not counted.
"""

from collections.abc import Iterator
from typing import NamedTuple

from deepseek.planner.cluster import Gpu
from deepseek.planner.eager import count_block_extra, count_rank_extra, count_score_work
from deepseek.planner.flops import Weights
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.pipeline import (
    FORWARD_FIRST,
    InFlight,
    divide_layers,
    find_head_rank,
    list_in_flight,
)
from deepseek.planner.shape import TransformerShape

RESERVED_BYTES = 1.25 * 2**30
"""Taken by the driver, loaded kernels and buffers of the communication library."""
FRAGMENTED_SHARE = 0.02
"""Of the memory that an allocator cannot hand out."""


class BlockBytes(NamedTuple):
    """Activations of one block and micro-batch on one rank."""

    kept: float
    """From forward to backward, under the plan's recomputation."""
    working: float
    """While one block runs backward: what recomputation brings back, whole."""
    waiting: float = 0.0
    """Beside what is kept, while gradients of its weights are put off: see `InFlight`."""


def count_block_bytes(shape: TransformerShape, plan: ParallelPlan) -> BlockBytes:
    """Activations of a block under `plan`."""
    everything, core, light, outputs = _count_kept(shape, plan)
    if plan.eager is not None:
        everything += count_block_extra(shape, plan, plan.eager)
    mode = plan.recompute
    waiting = _count_waiting(shape, plan, outputs)
    if mode == "none":
        return BlockBytes(everything, 0.0, waiting)
    if mode == "full":
        whole = plan.tp if plan.sequence_parallel else 1
        kept = plan.stream * _count_tokens(shape, plan) * shape.dim / whole
    elif mode == "selective" and plan.attention == "plain":
        kept = everything - core
    else:
        kept = everything - light
        if mode == "selective":
            kept -= plan.selective_products * outputs
    kept = plan.recompute_share * kept + (1 - plan.recompute_share) * everything
    return BlockBytes(kept, everything - kept, waiting)


def _count_waiting(shape: TransformerShape, plan: ParallelPlan, outputs: float) -> float:
    """Gradients of what products and norms of a block make, until those of weights are taken."""
    tokens = _count_tokens(shape, plan)
    into_stream = plan.item_bytes * tokens * shape.dim * (1 + shape.active_experts)
    whole = plan.tp if plan.sequence_parallel else 1
    return outputs + into_stream + plan.stream * 2 * tokens * shape.dim / whole


def _count_tokens(shape: TransformerShape, plan: ParallelPlan) -> float:
    return plan.micro_batch_size * shape.context_length / plan.cp


def _count_kept(shape: TransformerShape, plan: ParallelPlan) -> tuple[float, ...]:
    """Bytes a block keeps: all; of them attention's core, norms and activations, products."""
    tokens, tp, item = _count_tokens(shape, plan), plan.tp, plan.item_bytes
    whole = tokens * shape.dim / (tp if plan.sequence_parallel else 1)
    q = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    active, hidden = shape.active_experts, shape.hidden_dim
    # In fp8, what only products read (outputs of norms and of the activation) is kept as cast.
    read = 1 if plan.precision == "fp8" else item
    norms = read * 2 * whole
    # Inputs of the two norms and their outputs; a mask of one byte after each branch.
    total = plan.stream * 2 * whole + norms + (2 * whole if shape.dropout else 0)
    total += item * tokens * (2 * q + 2 * kv) / tp
    # Gated: gate, up, activated gate, their product. Else: before and after the activation.
    features = tokens * active * hidden / tp
    total += features * (3 * item + read if shape.is_gated else item + read)
    light = norms + features * (item + read if shape.is_gated else read)
    if plan.keeps_gathered:
        if plan.sequence_parallel and tp > 1:
            # What norms make is gathered before it is kept: there is no recipe for that.
            light -= norms
            total += (tp - 1) * norms
        if plan.cp > 1:
            total += item * _count_gathered(shape, plan)
    if shape.num_experts > 1:
        total += item * 2 * tokens * active * shape.dim / tp
    scores = tokens * shape.context_length * shape.heads / tp
    if plan.attention == "plain":
        core = scores * (item + (1 + item if shape.dropout else 0))
    else:
        # One fp32 number for each row of scores.
        core = 4 * tokens * shape.heads / tp
    outputs = item * tokens * (q + 2 * kv + (2 if shape.is_gated else 1) * active * hidden) / tp
    return total + core, core if plan.attention == "plain" else 0.0, light, outputs


def _count_gathered(shape: TransformerShape, plan: ParallelPlan) -> float:
    """Numbers that a block of `cp` keeps beside its own, with a causal mask.

    Keys and values of all tokens; its two runs of tokens as they leave attention, before they are
    put together; and the two masks, one number for each query and key. Its first and its last run
    see `2 * cp + 1` times as many keys together as the first token's run.
    """
    whole = plan.cp * _count_tokens(shape, plan)
    run = shape.context_length / (2 * plan.cp)
    heads = (2 * shape.kv_heads * whole + shape.heads * whole / plan.cp) / plan.tp
    return heads * shape.head_dim + (2 * plan.cp + 1) * run**2


def count_rank_weights(
    shape: TransformerShape, weights: Weights, plan: ParallelPlan
) -> tuple[float, ...]:
    """Weights of each pipeline rank after `tp`, before `dp_shard`."""
    layers = divide_layers(shape.num_layers, plan.pp, plan.virtual_stages, plan.schedule)
    layer = _divide_layer(shape, weights, plan.tp)
    counts = [count * layer for count in layers]
    head_rank = find_head_rank(plan.pp, plan.schedule)
    counts[0] += weights.embedding / plan.tp
    counts[head_rank] += weights.head / plan.tp
    if shape.is_tied and head_rank:
        # The last rank has a copy of the tied matrix.
        counts[head_rank] += shape.vocab_size * shape.dim / plan.tp
    return tuple(counts)


def _divide_layer(shape: TransformerShape, weights: Weights, tp: int) -> float:
    """Weights of a block on one rank: norms are whole on each."""
    return (weights.layer - weights.norms) / tp + weights.norms


def count_memory(
    shape: TransformerShape, weights: Weights, plan: ParallelPlan
) -> list[dict[str, float]]:
    """Bytes by category on each pipeline rank, first to last."""
    per_rank = count_rank_weights(shape, weights, plan)
    layers = divide_layers(shape.num_layers, plan.pp, plan.virtual_stages, plan.schedule)
    in_flight = list_in_flight(
        plan.schedule, plan.pp, plan.virtual_stages, plan.num_micro_batches,
        puts_off=plan.puts_off_weights,
    )  # fmt: skip
    block = count_block_bytes(shape, plan)
    per_weight = _bytes_per_weight(plan, shape.trained_share)
    coming = _count_coming_bytes(shape, plan)
    layer = _divide_layer(shape, weights, plan.tp)
    ranks = []
    for rank, (count, num_layers) in enumerate(zip(per_rank, layers, strict=True)):
        gradients = count * per_weight[1] * (2 if _adds_beside_buckets(plan) else 1)
        late = gradients if _makes_gradients_late(plan) else 0.0
        buffers = _count_buffer_bytes(plan, shape.trained_share, count, num_layers, layer)
        passing = _count_passing_bytes(plan, shape.trained_share, layer)
        own = _Rank(rank, num_layers, late, passing)
        peak = max(
            (
                moment
                for in_all in in_flight[rank]
                for moment in _list_moments(shape, plan, block, own, in_all)
            ),
            key=sum,
        )
        ranks.append(
            {
                "weights": count * per_weight[0],
                "gradients": gradients - late + peak.gradients,
                "optimizer": count * per_weight[2] + coming,
                "activations": peak.activations,
                "logits": peak.logits,
                "buffers": buffers - passing + peak.buffers,
            }
        )
    return ranks


class _Moment(NamedTuple):
    """Bytes that come and go within a step, at once."""

    activations: float
    logits: float
    gradients: float
    buffers: float


class _Rank(NamedTuple):
    """Of a pipeline.

    Attributes:
        number: which.
        num_layers: its blocks.
        late: bytes of gradients that come in the backward pass.
        passing: bytes of buffers that are there as a block runs.
    """

    number: int
    num_layers: int
    late: float
    passing: float


def _list_moments(
    shape: TransformerShape,
    plan: ParallelPlan,
    block: BlockBytes,
    rank: _Rank,
    in_flight: InFlight,
) -> Iterator[_Moment]:
    """Yield what a rank has as a block runs backward, and where it has the head before that.

    Args:
        shape: sizes of the model.
        plan: of the run.
        block: bytes of one.
        rank: of the pipeline.
        in_flight: what it holds.
    """
    number, num_layers, late, passing = rank
    held, waiting = in_flight
    kept, work = num_layers * held * block.kept, block.working
    if plan.eager is not None:
        kept += count_rank_extra(shape, plan, number, held)
        work += count_score_work(shape, plan, plan.eager)
    if number != find_head_rank(plan.pp, plan.schedule):
        kept += num_layers * waiting * block.waiting
        yield _Moment(kept + work, 0.0, late, passing)
        return
    logits = _count_logits_bytes(shape, plan)
    if plan.eager is None and not waiting:
        yield _Moment(kept + work, logits, late, passing)
        return
    # each pass that waits has the gradient of its logits, too; the last has begun with logits
    each = num_layers * block.waiting / plan.virtual_stages
    each += plan.item_bytes * _count_logits(shape, plan)
    passes = waiting * plan.virtual_stages
    yield _Moment(kept + max(0.0, passes - 1) * each, logits, 0.0, 0.0)
    left = (4 + plan.item_bytes) * _count_logits(shape, plan) if waiting else 0.0
    if late:  # gradients come as activations go
        yield _Moment(kept / num_layers + work, 0.0, late, passing)
        late /= num_layers
    yield _Moment(kept + passes * each + work, left, late, passing)


def _makes_gradients_late(plan: ParallelPlan) -> bool:
    """Whether there is no gradient before a step's only backward pass, nor a bucket for it."""
    return plan.pp == 1 and plan.num_micro_batches == 1 and not _has_buckets(plan)


def _adds_beside_buckets(plan: ParallelPlan) -> bool:
    """Whether gradients are added up outside of the buckets that the last of them fill."""
    adds = plan.pp == 1 and plan.num_micro_batches > 1 and not plan.adds_in_product
    return adds and _has_buckets(plan)


def _has_buckets(plan: ParallelPlan) -> bool:
    return plan.dp_shard == 1 and plan.dp_replicate * plan.cp > 1


def _bytes_per_weight(plan: ParallelPlan, trained: float) -> tuple[float, float, float]:
    """Bytes of the device for each weight of a rank: of weights, gradients, optimizer."""
    shards = count_shards(plan)
    if plan.offload == "parameters":
        return 0.0, 0.0, 0.0
    gradient, state = plan.gradient_bytes * trained, plan.state_bytes * trained
    if plan.offload == "optimizer":
        state = 0.0
    if shards > 1:
        return count_stored_bytes(plan) / shards, gradient / shards, state / shards
    copies = plan.dp_replicate * plan.cp if plan.shards_optimizer else 1
    return plan.weight_bytes, gradient, (plan.master_bytes + state) / copies


def count_stored_bytes(plan: ParallelPlan) -> float:
    """Bytes of a weight where it is fully sharded.

    The master weight is the weight; the compute copy lives in buffers.
    """
    return plan.master_bytes or plan.weight_bytes


def _count_coming_bytes(shape: TransformerShape, plan: ParallelPlan) -> float:
    """State of the largest weight, while it is on the device for its update."""
    if plan.offload != "optimizer":
        return 0.0
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    largest = shape.dim * max(shape.vocab_size, shape.hidden_dim, q + 2 * kv) / plan.tp
    return plan.state_bytes * largest / count_shards(plan)


def count_shards(plan: ParallelPlan) -> int:
    """Ranks that weights are divided between: `dp_shard`, and `cp` with it."""
    return plan.dp_shard * plan.cp if plan.dp_shard > 1 else 1


def _count_logits_bytes(shape: TransformerShape, plan: ParallelPlan) -> float:
    """Fused: in compute precision, and fp32 probabilities that the gradient overwrites.

    Else: in compute precision and in fp32, logarithms of probabilities, the gradient; divided
    between ranks of `tp`, PyTorch makes another copy on the way to it. A pipeline in which all
    micro-batches go forward first has logits and logarithms of all others, too.
    """
    elements = _count_logits(shape, plan)
    if plan.is_loss_fused:
        return elements * 6
    each = 16 if plan.tp > 1 else 12
    if plan.eager is not None and plan.pp > 1:  # a stage's output stays until it goes backward
        each += plan.item_bytes
    if plan.pp > 1 and plan.schedule in FORWARD_FIRST:
        each += (plan.num_micro_batches - 1) * (4 + plan.item_bytes)
    return elements * each


def _count_logits(shape: TransformerShape, plan: ParallelPlan) -> float:
    return _count_tokens(shape, plan) * shape.vocab_size / plan.tp


def _count_buffer_bytes(
    plan: ParallelPlan, trained: float, count: float, num_layers: int, layer: float
) -> float:
    """Gathered weights and unreduced gradients of fully sharded ranks."""
    if count_shards(plan) == 1:
        return 0.0
    ends = count - num_layers * layer
    # A pipeline stage adds up whole gradients until its last micro-batch.
    sums = plan.gradient_bytes * trained * count if plan.pp > 1 else 0.0
    if not plan.frees_weights:
        return plan.weight_bytes * (count + layer) + sums
    # The block that runs and the next one; one block's gradients; embedding and head throughout.
    return plan.weight_bytes * ((2 + trained) * layer + ends) + sums


def _count_passing_bytes(plan: ParallelPlan, trained: float, layer: float) -> float:
    """Of them, what is there only as a block runs; of fused kernels it is said to be throughout."""
    if plan.eager is None or count_shards(plan) == 1 or not plan.frees_weights:
        return 0.0
    return plan.weight_bytes * (2 + trained) * layer


def count_usable_bytes(gpu: Gpu) -> float:
    """Bytes of `gpu` that are left to a training by the driver and by fragmentation."""
    return (gpu.memory_bytes - RESERVED_BYTES) * (1 - FRAGMENTED_SHARE)


def fits_device(gpu: Gpu, peak_bytes: float) -> bool:
    """Whether `peak_bytes` leave room for the driver and for fragmentation."""
    return peak_bytes <= count_usable_bytes(gpu)
