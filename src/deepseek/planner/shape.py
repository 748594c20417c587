"""What a planner knows of a transformer: widths and counts, no weights.

Letters: B batch, T tokens of a sequence, D dim, F hidden features, V vocabulary, L layers.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a transformer, as its memory and time depend on them.

    Attributes:
        name: for tables.
        num_layers: blocks.
        dim: width of a token.
        heads: of queries.
        kv_heads: of keys and values; fewer than `heads` with grouped queries.
        hidden_dim: features inside the feed-forward network (of one expert).
        vocab_size: rows of the embedding.
        context_length: tokens of a sequence in training.
        is_gated: a gate beside the first projection (SwiGLU): three matrices, not two.
        is_tied: embedding and head are one matrix.
        has_biases: linears add one.
        has_positions: a learned embedding of `context_length` rows.
        is_causal: tokens attend to those before them only.
        dropout: whether branches and attention drop out.
        head_dim: width of a head; `dim / heads` where 0.
        num_experts: feed-forward networks of a layer; 1 without mixture.
        active_experts: of them a token goes through.
    """

    name: str
    num_layers: int
    dim: int
    heads: int
    vocab_size: int
    context_length: int
    kv_heads: int = 0
    hidden_dim: int = 0
    is_gated: bool = False
    is_tied: bool = True
    has_biases: bool = False
    has_positions: bool = False
    is_causal: bool = True
    dropout: bool = False
    head_dim: int = 0
    num_experts: int = 1
    active_experts: int = 1
