"""A bidirectional transformer encoder: a class per sequence or per token, or the token itself.

Paper: Devlin et al. 2018 (BERT), arXiv 1810.04805, section 3; the blocks, normalised after each
branch, are those of Vaswani et al. 2017, arXiv 1706.03762, section 3.1. What is computed is BERT's,
so that published weights can be mapped onto it; three arguments make it RoBERTa (Liu et al. 2019,
arXiv 1907.11692) or DistilBERT (Sanh et al. 2019, arXiv 1910.01108). Departures: queries, keys and
values come from one projection; the type of a token follows from where a separator stands
(`type_separator`), and is 0 without one; weights begin normal rather than truncated normal; the
tables of positions and types are not decayed.

Shapes: B batch, T tokens, D dim, K classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import attention
from deepseek.models.checks import (
    check_choice,
    check_fits,
    check_positive,
    check_share,
    missing_head,
)
from deepseek.models.classifier import BlockModel
from deepseek.models.dropout import Dropout
from deepseek.models.hints import ParallelHints

OUTPUTS = ("sequence", "tokens", "vocabulary", "hidden")
POOLERS = {"tanh": torch.tanh, "relu": torch.relu}
INIT_STD = 0.02


class TokenEmbedding(nn.Module):
    """What a token is, where it is and of which type, added up and normalised.

    Args:
        vocab_size: tokens of the vocabulary.
        num_positions: rows of the table of positions.
        num_types: rows of the table of types; 0: no table.
        dim: D.
        dropout: probability.
        norm_eps: of the norm.
        positions_after: count positions from this number + 1 over the tokens that are not it, as
            RoBERTa does; `None`: over all, from 0.
        type_separator: the tokens behind the first of these are of type 1; `None`: none is.
    """

    def __init__(
        self,
        vocab_size: int,
        num_positions: int,
        num_types: int,
        dim: int,
        dropout: float,
        norm_eps: float,
        positions_after: int | None,
        type_separator: int | None,
    ) -> None:
        super().__init__()
        self.positions_after = positions_after
        self.type_separator = type_separator
        self.tok_embed = nn.Embedding(vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.empty(num_positions, dim))
        self.type_embed = nn.Parameter(torch.empty(num_types, dim)) if num_types else None
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return one vector per token."""
        x = self.tok_embed(tokens) + self._positions(tokens)
        if self.type_embed is not None:
            x = x + self._types(tokens)
        return self.dropout(self.norm(x))

    def _types(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "... D"]:
        table = self.type_embed
        if table is None:
            raise TypeError("there is no table of types")
        if self.type_separator is None:
            return table[0]
        is_separator = (tokens == self.type_separator).long()
        return F.embedding((is_separator.cumsum(1) - is_separator).clamp(max=1), table)

    def _positions(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "... T D"]:
        if self.positions_after is None:
            return self.pos_embed[: tokens.shape[1]]
        is_token = tokens != self.positions_after
        return F.embedding(is_token.cumsum(1) * is_token + self.positions_after, self.pos_embed)


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
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B 1 1 T"] | None = None,
        first_alone: bool = False,
    ) -> Float[Tensor, "B #T D"]:
        """Let all tokens, or the first alone, attend to those whose `mask` is `True`, or to all."""
        # Heads are counted from the projection: under tensor parallelism a rank has some of them.
        # Three parts of the last dim: in the backward pass they are joined by one copy.
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if first_alone:
            q = q[:, :, :1]
        mixed = self.attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each added to the stream and normalised after."""

    def __init__(
        self, dim: int, heads: int, hidden_dim: int, dropout: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.attn = BidirectionalAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B 1 1 T"] | None = None,
        first_alone: bool = False,
    ) -> Float[Tensor, "B #T D"]:
        """Return the tokens, or the first alone, after both branches."""
        mixed = self.attn(x, mask, first_alone)
        x = self.norm1((x[:, :1] if first_alone else x) + self.dropout(mixed))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class Pooler(nn.Module):
    """The first token, through a linear, a tanh or ReLU, and the dropout before the classifier."""

    def __init__(self, dim: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.activation = POOLERS[activation]
        self.linear = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return one vector per sequence."""
        return self.dropout(self.activation(self.linear(x[:, 0])))


class VocabularyTransform(nn.Module):
    """What a token goes through before it is compared with those of the vocabulary."""

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return one vector per token."""
        return self.norm(F.gelu(self.linear(x)))


class Encoder(BlockModel):
    """BERT: a transformer over tokens that see each other.

    Args:
        vocab_size: tokens of the vocabulary.
        context_length: tokens that it sees at most.
        num_layers: number of blocks.
        dim: width of a token; a multiple of `heads`.
        heads: attention heads of a block.
        num_classes: outputs; `None` leaves the head out until `bind_classes`. Those of
            `outputs="vocabulary"` are its tokens; `outputs="hidden"` has none.
        hidden_dim: width inside the feed-forward network; `4 * dim` by default.
        dropout: probability in 0..1, on attention weights, branches, embeddings and pooled token.
        pad_token: the token that fills sequences up and that no token attends to; `None` where
            sequences are of one length: attention is faster without a mask.
        num_types: rows of the type table; 0: no table.
        outputs: "sequence", the logits of a class for each sequence (B, K), from its first token;
            "tokens", of a class for each token (B, T, K); "vocabulary", of the token that stands
            behind each (masked language modelling), with the weight of the token embedding;
            "hidden", what the last block returns (B, T, D).
        norm_eps: added to the variance in norms.
        pooler: "tanh" or "relu", between the two linears of `outputs="sequence"`.
        skips_padding_positions: count positions over the tokens that are not padding, from
            `pad_token + 1`, as RoBERTa does; the table has so many more rows.
        type_separator: a token, such as `[SEP]`: those behind the first of them are of type 1, the
            second of two sentences. `None`: all are of type 0.

    Raises:
        ConfigError: a size is not positive, `heads` does not divide `dim`, `pad_token` is not of
            the vocabulary, or `num_classes` contradicts `outputs`.

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
        outputs: str = "sequence",
        norm_eps: float = 1e-12,
        pooler: str = "tanh",
        skips_padding_positions: bool = False,
        type_separator: int | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(
            vocab_size=vocab_size, context_length=context_length, num_layers=num_layers, dim=dim,
            heads=heads, hidden_dim=hidden_dim, num_types=num_types or 1,
        )  # fmt: skip
        check_share(dropout=dropout, norm_eps=norm_eps)
        if dim % heads:
            raise ConfigError(f"heads={heads} does not divide dim={dim}", fix="change heads or dim")
        _check_pad_token(pad_token, vocab_size, skips_padding_positions)
        check_choice(outputs=(outputs, OUTPUTS), pooler=(pooler, POOLERS))
        self._config = {
            "vocab_size": vocab_size, "context_length": context_length, "num_layers": num_layers,
            "dim": dim, "heads": heads, "num_classes": None, "hidden_dim": hidden_dim,
            "dropout": dropout, "pad_token": pad_token, "num_types": num_types,
            "outputs": outputs, "norm_eps": norm_eps, "pooler": pooler,
            "skips_padding_positions": skips_padding_positions, "type_separator": None,
        }  # fmt: skip
        self.context_length = context_length
        self.pad_token = pad_token
        self.keeps_tokens = outputs != "sequence"
        self.makes_logits = outputs != "hidden"
        after = pad_token if skips_padding_positions else None
        self.embedding = TokenEmbedding(
            vocab_size, context_length + (0 if after is None else after + 1), num_types, dim,
            dropout, norm_eps, after, None,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, heads, hidden_dim, dropout, norm_eps) for _ in range(num_layers)
        )
        self.pooler = Pooler(dim, dropout, pooler) if outputs == "sequence" else None
        self.transform = VocabularyTransform(dim, norm_eps) if outputs == "vocabulary" else None
        self.dropout = Dropout(dropout if outputs == "tokens" else 0.0)
        self.head: nn.Linear | None = None
        self._positions: Tensor | slice | None = None
        self._reset_parameters()
        if type_separator is not None:
            self.separate_types(type_separator)
        if outputs == "vocabulary" and num_classes is None:
            num_classes = vocab_size
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.pos_embed, std=INIT_STD)
        if self.embedding.type_embed is not None:
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
        parts = {"sequence": ("pooler", "head"), "tokens": ("head",), "hidden": ()}
        tables = ("embedding.pos_embed", "embedding.type_embed")
        return ParallelHints(
            blocks=("blocks",),
            column_linears=("attn.qkv", "fc1"),
            row_linears=("attn.proj", "fc2"),
            fused_heads=(("attn.qkv", 3),),
            heads=self._config["heads"],
            embeddings=("embedding",),
            head=parts.get(self._config["outputs"], ("transform", "head")),
            no_weight_decay=tables if self._config["num_types"] else tables[:1],
        )

    @property
    def input_shape(self) -> tuple[None]:
        """Any number of tokens up to `context_length`."""
        return (None,)

    def bind_classes(self, num_classes: int) -> None:
        """Build a head.

        Raises:
            ConfigError: if `num_classes` is not positive, or `outputs` leaves no choice of it.
        """
        check_positive(num_classes=num_classes)
        outputs, vocab_size = self._config["outputs"], self._config["vocab_size"]
        is_vocabulary = outputs == "vocabulary"
        if outputs == "hidden" or (is_vocabulary and num_classes != vocab_size):
            has = f"the {vocab_size} tokens of its vocabulary" if is_vocabulary else "no classes"
            raise ConfigError(
                f"num_classes={num_classes}, and an Encoder with outputs={outputs!r} has {has}",
                fix='leave num_classes out, or build it with outputs="sequence" or "tokens"',
            )
        like = self.embedding.tok_embed.weight
        self.head = nn.Linear(like.shape[1], num_classes, device=like.device, dtype=like.dtype)
        _reset_linear(self.head)
        if is_vocabulary:
            self.head.weight = like
        self._config["num_classes"] = num_classes

    def separate_types(self, separator: int) -> None:
        """Let the tokens behind the first `separator` be of type 1, where there is such a type.

        Raises:
            ConfigError: it is not of the vocabulary.
        """
        if not 0 <= separator < self._config["vocab_size"]:
            raise ConfigError(
                f"type_separator={separator} is not of the vocabulary of"
                f" {self._config['vocab_size']} tokens",
                fix="give the number of the token that stands between two sentences",
            )
        if self._config["num_types"] > 1:
            self._config["type_separator"] = self.embedding.type_separator = separator

    def beside_in(self, block: nn.Module) -> Mapping[str, object]:
        """Tell the last block to leave out the tokens that no pooler sees.

        Where tokens are divided over ranks it does what all blocks do.
        """
        is_last = block is self.blocks[-1] and isinstance(block, EncoderBlock)
        return {"first_alone": True} if is_last and self._reads_first_alone() else {}

    def _reads_first_alone(self) -> bool:
        return self.pooler is not None and not self.divides_tokens

    def embed(self, inputs: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return one vector per token.

        Raises:
            ConfigError: if there are too many tokens.
        """
        check_fits(inputs.shape[1], self.context_length)
        return self.embedding(inputs)

    def beside(self, inputs: Int[Tensor, "B T"]) -> Mapping[str, Tensor]:
        """Return the mask that hides padding, (B, 1, 1, T)."""
        if self.pad_token is None:
            return {}
        return {"mask": (inputs != self.pad_token)[:, None, None]}

    @contextmanager
    def logits_at(self, positions: Int[Tensor, "N"] | slice) -> Iterator[None]:
        """Let the model return logits (1, N, K) of some tokens alone, by their places in B x T."""
        self._positions = positions
        try:
            yield
        finally:
            self._positions = None

    def classify(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "..."]:
        """Return logits, as `outputs` says.

        Raises:
            ConfigError: if the model has no head yet.
        """
        if not self.makes_logits:
            return x
        if self.head is None:
            raise missing_head(type(self).__name__)
        if self._positions is not None:
            x = x.flatten(0, 1)[self._positions][None]
        for part in (self.pooler, self.transform):
            if part is not None:
                x = part(x)
        return self.head(self.dropout(x))


def _reset_linear(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=INIT_STD)
    nn.init.zeros_(linear.bias)


def _check_pad_token(pad_token: int | None, vocab_size: int, is_needed: bool) -> None:
    if pad_token is None and not is_needed:
        return
    is_number = isinstance(pad_token, int) and not isinstance(pad_token, bool)
    if pad_token is None or not is_number or not 0 <= pad_token < vocab_size:
        raise ConfigError(
            f"pad_token={pad_token!r} is not of a vocabulary of vocab_size={vocab_size}",
            fix=f"give a number from 0 to {vocab_size - 1}, or None where nothing is padded",
        )
