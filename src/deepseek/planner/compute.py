"""Seconds that one GPU spends on the operations of a block, and on logits and loss.

Three kinds of work: matrix products (tiles spread over processors in waves), attention, and
pointwise kernels, which move bytes and compute next to nothing.

Letters: m, n, k of a product [m, k] x [k, n]; tokens of a micro-batch on one rank.
"""

from functools import lru_cache
from typing import NamedTuple

from deepseek.planner.cluster import Gpu
from deepseek.planner.constants import Calibration
from deepseek.planner.parallel_plan import ParallelPlan
from deepseek.planner.shape import TransformerShape

TILE_FLOPS = 2 * 128 * 256
SMALL_TILE_SHARE = 0.85
"""Of the rate of a 128 x 256 tile that a 128 x 128 one reaches: it reads more for each product."""


class Chip(NamedTuple):
    """Rates of one GPU in one precision, calibrated."""

    tile_rate: float
    """FLOPs per second of one processor."""
    num_sms: int
    bytes_per_s: float
    wave_start_s: float
    wave_rounding: float
    kernel_start_s: float


class BlockTime(NamedTuple):
    """Seconds of one block for one micro-batch, communication left out."""

    forward_s: float
    backward_s: float
    core_s: float
    """Of `forward_s`: scores, softmax and mixing of values."""
    light_s: float
    """Of `forward_s`: norms and activations, cheap to compute again."""
    last_s: float
    """Of `forward_s`: the last product."""
    products_s: float
    """Of `forward_s`: all products with weights."""


def get_chip(gpu: Gpu, precision: str, cal: Calibration) -> Chip:
    """The rates of `gpu` for products in `precision`."""
    rate = gpu.matmul_flops[precision] * cal.matmul_share
    if gpu.is_power_limited and precision != "fp8":
        rate *= cal.power_share
    return Chip(
        rate / gpu.num_sms,
        gpu.num_sms,
        gpu.memory_bandwidth * cal.hbm_share,
        cal.wave_start_s,
        cal.wave_rounding,
        cal.kernel_start_s,
    )


def matmul_s(chip: Chip, m: float, n: float, k: float, count: float = 1, item: float = 2) -> float:
    """Seconds of `count` products [m, k] x [k, n] in one kernel; `item` bytes an element."""
    rows, columns = -(-m // 128), -(-n // 128)
    tiles = min(rows * -(-n // 256), -(-m // 256) * columns) * count
    sms, start_s = chip.num_sms, chip.wave_start_s
    split_k = k
    if 2 * tiles <= sms and k >= 2048:
        # Few tiles and a long sum, as for gradients of weights: the sum is divided, too.
        parts = min(sms // tiles, k // 1024)
        tiles, split_k = tiles * parts, k / parts
    waves = _count_waves(tiles / sms, chip.wave_rounding)
    best_s = waves * (TILE_FLOPS * split_k / chip.tile_rate + start_s)
    if waves < 8:
        small = _count_waves(rows * columns * count / sms, chip.wave_rounding)
        small_tile_s = TILE_FLOPS / 2 * k / (SMALL_TILE_SHARE * chip.tile_rate)
        best_s = min(best_s, small * (small_tile_s + start_s))
    moved_s = item * count * (m * k + k * n + m * n) / chip.bytes_per_s
    return max(best_s, moved_s) + chip.kernel_start_s


def _count_waves(exact: float, rounding: float) -> float:
    whole = -(-exact // 1)
    return exact + rounding * (whole - exact)


def _linear_s(
    chip: Chip, tokens: float, n: float, k: float, item: float, trained: float, count: float = 1
) -> tuple[float, float]:
    """Seconds forward and backward of a linear layer of `k` to `n` features.

    `trained`: the share of its weights that has gradients.
    """
    forward_s = matmul_s(chip, tokens, n, k, count, item)
    inputs_s = matmul_s(chip, tokens, k, n, count, item)
    return forward_s, inputs_s + trained * matmul_s(chip, n, k, tokens, count, item)


@lru_cache(maxsize=16384)
def time_block(
    shape: TransformerShape,
    gpu: Gpu,
    samples: int,
    tp: int,
    cp: int,
    kind: tuple[str, str, bool, bool],
    cal: Calibration,
) -> BlockTime:
    """Seconds of one block on one of `tp * cp` ranks.

    Args:
        shape: sizes of the block.
        gpu: it runs on.
        samples: of the micro-batch.
        tp: ranks that features are divided between.
        cp: ranks that tokens are divided between.
        kind: precision, attention, sequence_parallel, is_fused of the plan.
        cal: constants.
    """
    precision, attention, sequence_parallel, is_fused = kind
    chip = get_chip(gpu, precision, cal)
    half = "bf16" if precision == "fp8" and "bf16" in gpu.matmul_flops else precision
    tokens = samples * shape.context_length / cp
    item = 4 if precision == "fp32" else 2
    products_s, products_backward_s, last_s = _time_products(shape, chip, tokens, tp, item)
    if precision == "fp8":
        cast_s = _count_cast_bytes(shape, tokens, tp) / chip.bytes_per_s
        products_s, products_backward_s = products_s + cast_s, products_backward_s + cast_s
    half_chip = get_chip(gpu, half, cal)
    if attention == "plain":
        core = _time_plain(shape, half_chip, samples, tp, cp, item)
    else:
        share = cal.flash_share if attention == "flash" else cal.flash1_share
        rate = gpu.matmul_flops[half] * share * (cal.power_share if gpu.is_power_limited else 1)
        core = _time_flash(shape, rate, samples, tp, cp, cal)
    light, other = _count_pointwise_bytes(
        shape, tokens, tp, tokens / (tp if sequence_parallel else 1), attention, is_fused
    )
    bias_s = _count_bias_reads(shape, tokens, tp) * item / chip.bytes_per_s
    light_s = light * item / chip.bytes_per_s + 3 * cal.kernel_start_s
    pointwise_s = light_s + other * item / chip.bytes_per_s + 4 * cal.kernel_start_s
    return BlockTime(
        products_s + core[0] + pointwise_s,
        products_backward_s + core[1] + 1.5 * pointwise_s + bias_s,
        core[0],
        light_s,
        last_s,
        products_s,
    )


def _time_products(
    shape: TransformerShape, chip: Chip, tokens: float, tp: int, item: float
) -> tuple[float, float, float]:
    """Seconds forward and backward of the linear layers of a block, and of the last forward."""
    dim, q = shape.dim, shape.heads * shape.head_dim
    qkv = q + 2 * shape.kv_heads * shape.head_dim
    hidden = (2 if shape.is_gated else 1) * shape.hidden_dim
    experts = shape.num_experts
    routed = tokens * shape.active_experts / experts
    trained = shape.trained_share
    parts = (
        _linear_s(chip, tokens, qkv / tp, dim, item, trained),
        _linear_s(chip, tokens, dim, q / tp, item, trained),
        _linear_s(chip, routed, hidden / tp, dim, item, trained, experts),
        _linear_s(chip, routed, dim, shape.hidden_dim / tp, item, trained, experts),
    )
    return sum(part[0] for part in parts), sum(part[1] for part in parts), parts[-1][0]


def _count_cast_bytes(shape: TransformerShape, tokens: float, tp: int) -> float:
    """Bytes moved to cast inputs of the products to fp8: 2 read, 2 written (also transposed)."""
    q = shape.heads * shape.head_dim / tp
    inputs = shape.dim + q + shape.active_experts * (shape.dim + shape.hidden_dim / tp)
    matrices = (3 if shape.is_gated else 2) * shape.hidden_dim * shape.num_experts
    weights = shape.dim * (2 * q + 2 * shape.kv_heads * shape.head_dim / tp + matrices / tp)
    return 4 * tokens * inputs + 2 * weights


def _time_flash(
    shape: TransformerShape, rate: float, samples: int, tp: int, cp: int, cal: Calibration
) -> tuple[float, float]:
    """Seconds forward and backward of fused attention."""
    width = shape.heads * shape.head_dim / tp
    pairs = samples * shape.context_length * shape.context_length / cp
    if shape.is_causal:
        pairs /= 2
    reached = shape.head_dim / (shape.head_dim + cal.flash_head_dim)
    forward_s = 4 * pairs * width / (rate * reached) + cal.kernel_start_s
    return forward_s, cal.flash_backward * forward_s


def _time_plain(
    shape: TransformerShape, chip: Chip, samples: int, tp: int, cp: int, item: float
) -> tuple[float, float]:
    """Seconds forward and backward of attention that writes its matrix of scores to memory."""
    length, heads, width = shape.context_length, samples * shape.heads / tp, shape.head_dim
    rows = length / cp
    scores_s = matmul_s(chip, rows, length, width, heads, item)
    mix_s = matmul_s(chip, rows, width, length, heads, item)
    elements = heads * rows * length
    # Scale, mask and softmax read and write each score; dropout does once more, and its mask.
    passes = 2 + (2.5 if shape.dropout else 0)
    passes_backward = 3 + (2.5 if shape.dropout else 0)
    forward_s = scores_s + mix_s + passes * item * elements / chip.bytes_per_s
    backward_s = 2 * scores_s + 2 * mix_s + passes_backward * item * elements / chip.bytes_per_s
    return forward_s, backward_s


def _count_pointwise_bytes(
    shape: TransformerShape,
    tokens: float,
    tp: int,
    whole: float,
    attention: str,
    is_fused: bool,
) -> tuple[float, float]:
    """Elements read and written forward by (norms and activation), (everything else).

    `whole`: tokens where features are not divided by `tp`.
    """
    dim, q = shape.dim, shape.heads * shape.head_dim / tp
    kv = shape.kv_heads * shape.head_dim / tp
    is_eager_llama = shape.is_gated and not is_fused
    # An eager RMS norm works in fp32 through five kernels; an eager layer norm casts before it and
    # sums gradients of its weights in kernels of their own.
    norms = 2 * (2 if is_fused else 7 if shape.is_gated else 4) * whole * dim
    passes = (5 if is_eager_llama else 3) if shape.is_gated else 2
    activation = passes * tokens * shape.active_experts * shape.hidden_dim / tp
    branches = 2 * (3.5 if shape.dropout else 3) * whole * dim
    if attention == "plain":
        layout = 2 * tokens * (2 * q + 2 * kv)
    elif shape.has_positions:
        # Eager gradients of queries, keys and values are packed into one tensor.
        layout = 0 if is_fused else tokens * (q + 2 * kv)
    else:
        layout = (2 if is_fused else 10) * tokens * (q + kv)
    routing = 4 * tokens * shape.active_experts * dim if shape.num_experts > 1 else 0
    return norms + activation, branches + layout + routing


def _count_bias_reads(shape: TransformerShape, tokens: float, tp: int) -> float:
    """Elements read backward to sum the gradients of biases: outputs of all linear layers."""
    if not shape.has_biases:
        return 0.0
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    hidden = (2 if shape.is_gated else 1) * shape.hidden_dim
    return tokens * ((qkv + hidden) / tp + 2 * shape.dim)


@lru_cache(maxsize=4096)
def time_head(
    shape: TransformerShape,
    gpu: Gpu,
    tokens: float,
    tp: int,
    precision: str,
    is_loss_fused: bool,
    cal: Calibration,
) -> tuple[float, float]:
    """Seconds forward and backward of logits and loss of a micro-batch of `tokens`."""
    if precision == "fp8":
        precision = "bf16"
    chip = get_chip(gpu, precision, cal)
    vocab = shape.vocab_size / tp
    item = 4 if precision == "fp32" else 2
    forward_s, backward_s = _linear_s(chip, tokens, vocab, shape.dim, item, shape.trained_share)
    # Fused: a cast to fp32, maximum, exponential and sum, one pass back. Eager: each on its own.
    passes_s = tokens * vocab / chip.bytes_per_s
    return (
        forward_s + (16 if is_loss_fused else 28) * passes_s,
        backward_s + (10 if is_loss_fused else 18) * passes_s,
    )


def recompute_s(block: BlockTime, plan: ParallelPlan) -> float:
    """Seconds that a block spends on computing again what was not kept."""
    if plan.recompute == "none":
        return 0.0
    if plan.recompute == "full":
        seconds = block.forward_s - (block.last_s if plan.stops_early else 0.0)
    elif plan.recompute == "selective" and plan.attention == "plain":
        seconds = block.core_s
    else:
        seconds = block.light_s
        if plan.recompute == "selective":
            seconds += plan.selective_products * block.products_s
    return plan.recompute_share * seconds
