"""Time and memory of any plan, from one physical model.

A step is, on the slowest pipeline rank, all micro-batches forward and backward; then the wait for
the other ranks (the bubble), communication that nothing hides, and the optimizer.
"""

from dataclasses import replace
from typing import NamedTuple

from deepseek.planner.cluster import Cluster
from deepseek.planner.compute import recompute_s, time_block, time_head
from deepseek.planner.constants import CALIBRATION, Calibration
from deepseek.planner.feasibility import check_plan
from deepseek.planner.flops import (
    attention_flops_per_token,
    count_parameters,
    count_weights,
    layers_forward_flops_per_token,
    model_flops_per_token,
)
from deepseek.planner.footprint import (
    count_memory,
    count_rank_weights,
    count_shards,
    fits_device,
)
from deepseek.planner.host import HostTime, count_host_bytes, fits_host, time_host
from deepseek.planner.network import Ring, exposed_s, make_ring, send_s
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.pipeline import bubble_share, divide_layers, find_head_rank
from deepseek.planner.prediction import Prediction
from deepseek.planner.shape import TransformerShape
from deepseek.planner.traffic import (
    count_boundary_bytes,
    count_context_bytes,
    count_context_passes,
    count_rounds,
    count_sums,
)


class MicroBatchTime(NamedTuple):
    """Seconds of one micro-batch on the slowest pipeline rank, and of all ranks together."""

    compute_s: float
    recompute_s: float
    tp_s: float
    cp_s: float
    pp_s: float
    all_ranks_s: float
    backward_share: float
    rank: int
    """The slowest."""

    @property
    def total_s(self) -> float:
        """Forward and backward with communication that is in their way."""
        return self.compute_s + self.recompute_s + self.tp_s + self.cp_s + self.pp_s


def predict(
    model: TransformerShape,
    cluster: Cluster,
    plan: ParallelPlan,
    calibration: Calibration = CALIBRATION,
    *,
    trainable: float | None = None,
) -> Prediction:
    """What one optimizer step of `model` on `cluster` under `plan` takes.

    Args:
        model: sizes of the transformer.
        cluster: GPUs and links, as many as `plan.world_size`.
        plan: degrees, micro-batches, recomputation, precision.
        calibration: the fitted constants.
        trainable: weights that are trained: their share, up to 1, or their number, above 1; the
            others are frozen. `None`: what the model says, which is all of them if nothing else.

    Raises:
        ConfigError: the plan is impossible for this model or cluster; the message says why.
    """
    if trainable is not None:
        model = train_some(model, trainable)
    check_plan(model, cluster, plan)
    weights, trained = count_weights(model), model.trained_share
    local = count_rank_weights(model, weights, plan)
    once = _time_micro_batch(model, cluster, plan, calibration)
    micro_batches = plan.num_micro_batches
    share = bubble_share(plan.schedule, plan.virtual_stages, puts_off=plan.puts_off_weights)
    bubble_s = share * (once.all_ranks_s - once.total_s)
    dp_s = _data_parallel_s(model, cluster, plan, once, max(local), HostTime(), calibration)
    host = time_host(cluster.host, plan, trained, max(local), calibration)
    host_s = host.alone_s
    if plan.offload == "parameters":
        both_s = _data_parallel_s(model, cluster, plan, once, max(local), host, calibration)
        host_s += max(0.0, both_s - dp_s)
    time_s = {
        "compute": micro_batches * once.compute_s,
        "recompute": micro_batches * once.recompute_s,
        "tp": micro_batches * once.tp_s,
        "cp": micro_batches * once.cp_s,
        "pp": micro_batches * once.pp_s,
        "dp": dp_s,
        "bubble": bubble_s,
        "optimizer": _optimizer_s(cluster, plan, trained, max(local), calibration),
        "host": host_s,
    }
    host_bytes = count_host_bytes(plan, trained, max(local))
    memory = count_memory(model, weights, plan)
    return _make_prediction(model, cluster, plan, time_s, memory, host_bytes)


def train_some(model: TransformerShape, trainable: float) -> TransformerShape:
    """Return `model` with only some of its weights trained.

    Args:
        model: sizes of the transformer.
        trainable: share of the weights, up to 1, or their number, above 1.

    Raises:
        ConfigError: it is not above 0.
    """
    share = trainable if trainable <= 1 else min(1.0, trainable / count_parameters(model))
    return replace(model, trained_share=share)


def _time_micro_batch(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan, cal: Calibration
) -> MicroBatchTime:
    """Seconds of a micro-batch on the pipeline rank that sets the pace."""
    kind = (plan.precision, plan.attention, plan.sequence_parallel, plan.is_fused)
    block = time_block(model, cluster.gpu, plan.micro_batch_size, plan.tp, plan.cp, kind, cal)
    tokens = plan.micro_batch_size * model.context_length / plan.cp
    boundary = count_boundary_bytes(model, plan)
    tp_s = _tensor_parallel_s(cluster, plan, boundary, cal)
    cp_s = _context_parallel_s(model, cluster, plan, block.core_s, cal)
    again_s = recompute_s(block, plan)
    compute_s = block.forward_s + block.backward_s
    layers = divide_layers(model.num_layers, plan.pp, plan.virtual_stages, plan.schedule)
    per_layer_s = compute_s + again_s + tp_s + cp_s
    ranks_s = [count * per_layer_s for count in layers]
    head_rank = find_head_rank(plan.pp, plan.schedule)
    head = time_head(model, cluster.gpu, tokens, plan.tp, plan.precision, plan.is_loss_fused, cal)
    head_s = head[0] + head[1]
    ranks_s[head_rank] += head_s
    slowest_s = max(ranks_s)
    rank = ranks_s.index(slowest_s)
    count = layers[rank]
    pp_s = 0.0
    if plan.pp > 1:
        distance = plan.world_size // plan.pp
        sends = 2 * plan.virtual_stages
        pp_s = sends * send_s(cluster, boundary / plan.tp, distance, cal)
    extra_s = head_s if rank == head_rank else 0.0
    forward_s = count * block.forward_s + (head[0] if rank == head_rank else 0.0)
    total_s = slowest_s + pp_s
    return MicroBatchTime(
        count * compute_s + extra_s,
        count * again_s,
        count * tp_s,
        count * cp_s,
        pp_s,
        sum(ranks_s) + plan.pp * pp_s,
        1 - forward_s / total_s,
        rank,
    )


def _tensor_parallel_s(
    cluster: Cluster, plan: ParallelPlan, boundary: float, cal: Calibration
) -> float:
    """Seconds of a block's sums over `tp`: two forward, two backward, more in a recompute."""
    if plan.tp == 1:
        return 0.0
    sums = count_sums(plan)
    ring = make_ring(cluster, plan.tp, 1, cal)
    seconds = sums * ring.all_reduce_s(boundary)
    if plan.overlaps_tp:
        seconds *= 1 - cal.tp_overlap_share
    if plan.sequence_parallel:
        # Inputs are gathered once more, beside a product, for the gradients of weights.
        again_s = 2 * ring.gather_s(boundary)
        seconds += exposed_s(cluster, again_s, 2 * boundary, again_s, cal)
    return seconds


def _context_parallel_s(
    model: TransformerShape, cluster: Cluster, plan: ParallelPlan, core_s: float, cal: Calibration
) -> float:
    """Seconds that keys and values going round `cp` ranks add to attention's core."""
    if plan.cp == 1:
        return 0.0
    num_bytes, passes = count_context_bytes(model, plan), count_context_passes(plan)
    ring_s = make_ring(cluster, plan.cp, plan.tp, cal).gather_s(num_bytes)
    # Backward sends keys and values again and their gradients with them.
    forward_s = exposed_s(cluster, ring_s, num_bytes, core_s, cal)
    backward_s = exposed_s(cluster, 2 * ring_s, 2 * num_bytes, 2.5 * core_s, cal)
    return passes * forward_s + backward_s


def _data_parallel_s(
    model: TransformerShape,
    cluster: Cluster,
    plan: ParallelPlan,
    once: MicroBatchTime,
    local: float,
    host: HostTime,
    cal: Calibration,
) -> float:
    """Seconds of a step that gathering weights and reducing gradients add, and copies with them."""
    backward_s = once.backward_share * once.total_s
    forward_s = once.total_s - backward_s
    shards = count_shards(plan)
    if shards == 1:
        ring = make_ring(cluster, plan.dp_replicate * plan.cp, plan.tp, cal)
        back = plan.weight_bytes if plan.shards_optimizer else plan.gradient_bytes
        num_bytes = (plan.gradient_bytes + back) * model.trained_share * local
        if ring.size == 1:
            return 0.0
        sum_s = ring.gather_s(num_bytes) + ring.latency_s
        if not plan.overlaps_dp:
            return sum_s
        return exposed_s(cluster, sum_s, num_bytes, backward_s, cal)
    ring = make_ring(cluster, shards, plan.tp, cal)
    calls = max(1, model.num_layers // plan.pp)
    weights = plan.weight_bytes * local
    gradients = plan.gradient_bytes * model.trained_share * local
    gather_s = _in_calls_s(ring, weights, calls) + host.before_gather_s
    reduce_s = _in_calls_s(ring, gradients, calls) + host.after_reduction_s
    again_s, again = (gather_s, weights) if plan.frees_weights else (0.0, 0.0)
    if not plan.overlaps_dp:
        after_s, beside_s, beside = reduce_s, again_s, again
    else:
        after_s, beside_s, beside = 0.0, again_s + reduce_s, again + gradients
    gathers, reductions = count_rounds(plan)
    each_s = exposed_s(cluster, gather_s, weights, forward_s, cal)
    if gathers == reductions:
        each_s += exposed_s(cluster, beside_s, beside, backward_s, cal)
        total_s = gathers * (each_s + after_s)
    else:
        each_s += exposed_s(cluster, again_s, again, backward_s, cal)
        reduced_s = exposed_s(cluster, reduce_s, gradients, backward_s, cal)
        total_s = gathers * each_s + reductions * max(after_s, reduced_s)
    # Nothing runs yet beside the first gather of a step, nor beside its last reduction.
    ends_s = (gather_s + reduce_s) / calls
    copies = make_ring(cluster, plan.dp_replicate, plan.tp * shards, cal)
    sums = 2 * gradients / shards
    copies_s = exposed_s(cluster, copies.all_reduce_s(sums / 2), sums, backward_s, cal)
    return total_s + ends_s + copies_s


def _in_calls_s(ring: Ring, num_bytes: float, calls: int) -> float:
    """Seconds of gathering `num_bytes` block by block."""
    return ring.gather_s(num_bytes) + (calls - 1) * ring.latency_s


def _optimizer_s(
    cluster: Cluster, plan: ParallelPlan, trained: float, local: float, cal: Calibration
) -> float:
    """Seconds of moving gradients and states through memory, once a step and once a micro-batch.

    A step reads gradients for the norm, scales them, reads and writes master weights and state,
    writes compute weights (reads them, too, where there are no masters) and clears gradients; a
    micro-batch adds its gradients to the sum, unless the products do. With `offload="parameters"`
    the host does all this, but for the sums of a pipeline's stage.
    """
    shards = count_shards(plan)
    grads, copies = plan.gradient_bytes, 1
    if shards == 1 and plan.shards_optimizer:
        copies = plan.dp_replicate * plan.cp
    update = (4 * grads + 2 * plan.master_bytes + 2 * plan.state_bytes) / copies
    update += plan.weight_bytes * (1 if plan.master_bytes else 2) + grads
    accumulate = 0.0
    if shards > 1 or not plan.adds_in_product:
        accumulate = plan.num_micro_batches * (2 * grads + plan.weight_bytes)
    if plan.offload == "parameters":
        update, accumulate = 0.0, accumulate if plan.pp > 1 else 0.0
    num_bytes = trained * local / shards * (update + accumulate)
    return num_bytes / (cluster.gpu.memory_bandwidth * cal.hbm_share)


def _make_prediction(
    model: TransformerShape,
    cluster: Cluster,
    plan: ParallelPlan,
    time_s: dict[str, float],
    memory: list[dict[str, float]],
    host_bytes: float,
) -> Prediction:
    """Rates and shares from seconds and bytes."""
    step_s = sum(time_s.values())
    tokens_per_s = plan.batch_size * model.context_length / step_s / plan.world_size
    flops = model_flops_per_token(model)
    again = 0.0
    if plan.recompute == "full":
        again = plan.recompute_share * layers_forward_flops_per_token(model)
    elif plan.recompute == "selective":
        core = attention_flops_per_token(model) / 3
        products = plan.selective_products * (layers_forward_flops_per_token(model) - core)
        again = plan.recompute_share * (core if plan.attention == "plain" else products)
    peak_flops = cluster.gpu.peak_flops[plan.precision]
    peak_bytes = max(sum(rank.values()) for rank in memory)
    return Prediction(
        step_s=step_s,
        time_s=time_s,
        tokens_per_s_per_gpu=tokens_per_s,
        mfu=tokens_per_s * flops / peak_flops,
        hfu=tokens_per_s * (flops + again) / peak_flops,
        memory=memory,
        peak_bytes=peak_bytes,
        fits=fits_device(cluster.gpu, peak_bytes) and fits_host(cluster.host, host_bytes),
        model_flops_per_s=tokens_per_s * flops,
        host_bytes=host_bytes,
    )
