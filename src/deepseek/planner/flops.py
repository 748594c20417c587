"""Weights and floating-point operations of a transformer, counted.

The convention of most published tables: 6 FLOPs per weight and token (2 forward, 4 backward) and
`12 * layers * width * tokens` for the two products of attention, not halved for a causal mask. An
embedding that is only looked up is not counted; a matrix that is also the head is. A frozen weight
takes 4: the product for its own gradient is not there.
"""

from typing import NamedTuple

from deepseek.planner.shape import TransformerShape


class Weights(NamedTuple):
    """Numbers of weights, by where they are."""

    attention: int
    feedforward: int
    """Of all experts of a layer."""
    active_feedforward: int
    """Of the experts that a token goes through."""
    norms: int
    layer: int
    embedding: int
    """Tokens and positions, at the input."""
    head: int
    """Projection to logits where it is a matrix of its own, and the norm before it."""
    total: int


def count_weights(shape: TransformerShape) -> Weights:
    """Weights of the parts of `shape`."""
    dim, bias = shape.dim, 1 if shape.has_biases else 0
    q = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    attention = dim * (q + 2 * kv) + q * dim + bias * (q + 2 * kv + dim)
    num_in = 2 if shape.is_gated else 1
    expert = (num_in + 1) * dim * shape.hidden_dim + bias * (num_in * shape.hidden_dim + dim)
    router = dim * shape.num_experts if shape.num_experts > 1 else 0
    feedforward = shape.num_experts * expert + router
    active = shape.active_experts * expert + router
    norm = dim * (1 + bias)
    layer = attention + feedforward + 2 * norm
    positions = shape.num_positions or shape.context_length
    rows = shape.vocab_size + (positions if shape.has_positions else 0)
    head = norm + (0 if shape.is_tied else shape.vocab_size * dim)
    embedding = rows * dim
    total = shape.num_layers * layer + embedding + head
    return Weights(attention, feedforward, active, 2 * norm, layer, embedding, head, total)


def count_parameters(shape: TransformerShape) -> int:
    """All weights of `shape`."""
    return count_weights(shape).total


def count_active_parameters(shape: TransformerShape) -> int:
    """Weights that a token is multiplied with, without an embedding that is only looked up.

    Rows of learned positions stay in, as they do in the published counts.
    """
    weights = count_weights(shape)
    idle = shape.num_layers * (weights.feedforward - weights.active_feedforward)
    lookup = 0 if shape.is_tied else shape.vocab_size * shape.dim
    return weights.total - idle - lookup


def attention_flops_per_token(shape: TransformerShape) -> float:
    """Of scores and of mixing values, forward and backward, not halved for a causal mask."""
    return 12.0 * shape.num_layers * shape.heads * shape.head_dim * shape.context_length


def model_flops_per_token(shape: TransformerShape) -> float:
    """Forward and backward, without recomputation: 6N + 12 * layers * width * tokens."""
    each = 4.0 + 2.0 * shape.trained_share
    return each * count_active_parameters(shape) + attention_flops_per_token(shape)


def layers_forward_flops_per_token(shape: TransformerShape) -> float:
    """One forward pass of all blocks, what full recomputation adds."""
    weights = count_weights(shape)
    matrices = shape.num_layers * (weights.attention + weights.active_feedforward)
    return 2.0 * matrices + attention_flops_per_token(shape) / 3.0
