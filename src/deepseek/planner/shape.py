"""What a planner knows of a transformer: widths and counts, no weights.

Letters: B batch, T tokens of a sequence, D dim, F hidden features, V vocabulary, L layers.
"""

from dataclasses import dataclass

from deepseek.errors import ConfigError


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a transformer, as its memory and time depend on them.

    Attributes:
        name: for tables.
        num_layers: blocks.
        dim: width of a token.
        heads: of queries.
        kv_heads: of keys and values; fewer than `heads` with grouped queries; `heads` where 0.
        hidden_dim: features inside the feed-forward network (of one expert); where 0, `4 * dim`,
            or with a gate `8/3 * dim`.
        vocab_size: rows of the embedding.
        context_length: tokens of a sequence in training.
        is_gated: a gate beside the first projection (SwiGLU): three matrices, not two.
        is_tied: embedding and head are one matrix.
        has_biases: linears add one.
        has_positions: a learned embedding of positions.
        is_causal: tokens attend to those before them only.
        dropout: whether branches and attention drop out.
        head_dim: width of a head; `dim / heads` where 0.
        num_experts: feed-forward networks of a layer; 1 without mixture.
        active_experts: of them a token goes through.
        trained_share: of the weights, above 0 and up to 1; the others are frozen, and have neither
            gradient nor optimizer state. Every matrix is taken to have this share.
        num_positions: rows of the embedding of positions; `context_length` where 0.
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
    trained_share: float = 1.0
    num_positions: int = 0

    def __post_init__(self) -> None:
        for name in ("num_layers", "dim", "heads", "vocab_size", "context_length", "num_experts"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)} of shape {self.name!r} must be 1 or more.",
                    fix=f"set {name}",
                )
        if not 0 < self.trained_share <= 1:
            raise ConfigError(
                f"trained_share={self.trained_share} of shape {self.name!r} is no share.",
                fix="give the share of the weights that are trained, above 0 and up to 1",
            )
        if self.head_dim == 0 and self.dim % self.heads:
            raise ConfigError(
                f"heads={self.heads} does not divide dim={self.dim} of shape {self.name!r}.",
                fix="change heads or dim, or give head_dim",
            )
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise ConfigError(
                f"kv_heads={kv_heads} does not divide heads={self.heads} of shape {self.name!r}.",
                fix="change heads or kv_heads",
            )
        hidden_dim = self.hidden_dim or (8 * self.dim // 3 if self.is_gated else 4 * self.dim)
        object.__setattr__(self, "kv_heads", kv_heads)
        object.__setattr__(self, "hidden_dim", hidden_dim)
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.heads)
