"""A bidirectional transformer encoder that classifies a sequence of tokens.

Paper: Devlin et al. 2018 (BERT), arXiv 1810.04805, section 3; the blocks, normalised after each
branch, are those of Vaswani et al. 2017, arXiv 1706.03762, section 3.1. What is computed is BERT's,
so that published weights can be mapped onto it. Departures: queries, keys and values come from one
projection; all tokens are of type 0, as a sample is one sequence (the other rows of the type table
are there for published weights); weights begin normal rather than truncated normal; the tables of
positions and types are not decayed.

Shapes: B batch, T tokens, D dim, K classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import attention
from deepseek.models.checks import check_positive, check_share, missing_head
from deepseek.models.classifier import BlockModel
from deepseek.models.hints import ParallelHints

NORM_EPS = 1e-12
INIT_STD = 0.02


class TokenEmbedding(nn.Module):
    """What a token is, where it is and of which type, added up and normalised."""

    def __init__(
        self, vocab_size: int, context_length: int, num_types: int, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.empty(context_length, dim))
        self.type_embed = nn.Parameter(torch.empty(num_types, dim))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return one vector per token."""
        x = self.tok_embed(tokens) + self.pos_embed[: tokens.shape[1]] + self.type_embed[0]
        return self.dropout(self.norm(x))


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention to the tokens before and after, and to oneself."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attend = attention  # an attribute: context parallelism puts its own in this place

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 1 T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Let every token attend to those whose `mask` is `True`, or to all."""
        # Heads are counted from the projection: under tensor parallelism a rank has some of them.
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each added to the stream and normalised after."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.attn = BidirectionalAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 1 T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens after both branches."""
        x = self.norm1(x + self.dropout(self.attn(x, mask)))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class Pooler(nn.Module):
    """The first token, through a linear, a tanh and the dropout before the classifier."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector per sequence."""
        return self.dropout(torch.tanh(self.linear(x[:, 0])))


class Encoder(BlockModel):
    """BERT: a transformer over tokens that see each other, with one class per sequence.

    Args:
        vocab_size: tokens of the vocabulary.
        context_length: tokens that it sees at most.
        num_layers: number of blocks.
        dim: width of a token; a multiple of `heads`.
        heads: attention heads of a block.
        num_classes: outputs; `None` leaves the head out until `bind_classes`.
        hidden_dim: width inside the feed-forward network; `4 * dim` by default.
        dropout: probability in 0..1, on attention weights, branches, embeddings and pooled token.
        pad_token: the token that fills sequences up and that no token attends to; `None` where
            sequences are of one length: attention is faster without a mask.
        num_types: rows of the type table; a forward uses the first.

    Raises:
        ConfigError: a size is not positive, `heads` does not divide `dim`, or `pad_token` is not of
            the vocabulary.

    Example:
        >>> model = Encoder(
        ...     vocab_size=100, context_length=16, num_layers=2, dim=32, heads=4, num_classes=3
        ... )
        >>> model(torch.tensor([[7, 42, 3, 0, 0]])).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        num_layers: int,
        dim: int,
        heads: int,
        num_classes: int | None = None,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        pad_token: int | None = 0,
        num_types: int = 2,
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(
            vocab_size=vocab_size, context_length=context_length, num_layers=num_layers, dim=dim,
            heads=heads, hidden_dim=hidden_dim, num_types=num_types,
        )  # fmt: skip
        check_share(dropout=dropout)
        if dim % heads:
            raise ConfigError(f"heads={heads} does not divide dim={dim}", fix="change heads or dim")
        _check_pad_token(pad_token, vocab_size)
        self._config = {
            "vocab_size": vocab_size, "context_length": context_length, "num_layers": num_layers,
            "dim": dim, "heads": heads, "num_classes": None, "hidden_dim": hidden_dim,
            "dropout": dropout, "pad_token": pad_token, "num_types": num_types,
        }  # fmt: skip
        self.context_length = context_length
        self.pad_token = pad_token
        self.embedding = TokenEmbedding(vocab_size, context_length, num_types, dim, dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, heads, hidden_dim, dropout) for _ in range(num_layers)
        )
        self.pooler = Pooler(dim, dropout)
        self.head: nn.Linear | None = None
        self._reset_parameters()
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.pos_embed, std=INIT_STD)
        nn.init.normal_(self.embedding.type_embed, std=INIT_STD)
        nn.init.normal_(self.embedding.tok_embed.weight, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _reset_linear(module)

    @property
    def config(self) -> dict:
        """The constructor's arguments, JSON-able."""
        return dict(self._config)

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for."""
        return ParallelHints(
            blocks=("blocks",),
            column_linears=("attn.qkv", "fc1"),
            row_linears=("attn.proj", "fc2"),
            fused_heads=(("attn.qkv", 3),),
            heads=self._config["heads"],
            embeddings=("embedding",),
            head=("pooler", "head"),
            no_weight_decay=("embedding.pos_embed", "embedding.type_embed"),
        )

    @property
    def input_shape(self) -> tuple[None]:
        """Any number of tokens up to `context_length`."""
        return (None,)

    def bind_classes(self, num_classes: int) -> None:
        """Build a head.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        like = self.pooler.linear.weight
        self.head = nn.Linear(len(like), num_classes, device=like.device, dtype=like.dtype)
        _reset_linear(self.head)
        self._config["num_classes"] = num_classes

    def embed(self, inputs: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return one vector per token.

        Raises:
            ConfigError: if there are too many tokens.
        """
        num_tokens = inputs.shape[1]
        if num_tokens > self.context_length:
            raise ConfigError(
                f"{num_tokens} tokens do not fit a model with context_length={self.context_length}",
                fix="cut the sequences, or build the model with a longer context",
            )
        return self.embedding(inputs)

    def beside(self, inputs: Int[Tensor, "B T"]) -> Mapping[str, Tensor]:
        """Return the mask that hides padding, (B, 1, 1, T)."""
        if self.pad_token is None:
            return {}
        return {"mask": (inputs != self.pad_token)[:, None, None]}

    def classify(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B K"]:
        """Return the logits of a sequence from its first token.

        Raises:
            ConfigError: if the model has no head yet.
        """
        if self.head is None:
            raise missing_head(type(self).__name__)
        return self.head(self.pooler(x))


def _reset_linear(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=INIT_STD)
    nn.init.zeros_(linear.bias)


def _check_pad_token(pad_token: int | None, vocab_size: int) -> None:
    if pad_token is None:
        return
    is_number = isinstance(pad_token, int) and not isinstance(pad_token, bool)
    if not is_number or not 0 <= pad_token < vocab_size:
        raise ConfigError(
            f"pad_token={pad_token!r} is not of a vocabulary of vocab_size={vocab_size}",
            fix=f"give a number from 0 to {vocab_size - 1}, or None where nothing is padded",
        )
