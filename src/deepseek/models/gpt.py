"""GPT: a decoder-only transformer over tokens.

Papers: Radford et al. 2019 (GPT-2), section 2.3: normalisation before each branch, residual
projections begun smaller by `sqrt(2 num_layers)`, output tied to the token embedding (Press & Wolf
2017, arXiv 1608.05859). Departures: no biases beside those of the norms and an exact GELU, unless
asked for (`bias`, `activation`: published weights need them), and the vocabulary is padded inside
the embedding to a multiple of 64, which makes the last product faster. The "classes" of this
classifier are the tokens of its vocabulary.

Shapes: B batch, T tokens, D dim, V vocabulary.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import causal_attention
from deepseek.models.checks import check_choice, check_positive, check_share, missing_head
from deepseek.models.classifier import BlockModel
from deepseek.models.hints import ParallelHints

VOCABULARY_MULTIPLE = 64
ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


class CausalAttention(nn.Module):
    """Multi-head self-attention to the tokens before, and to oneself."""

    def __init__(self, dim: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        self.attend = causal_attention  # context parallelism puts its own here

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Let every token attend to those up to it."""
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GPTBlock(nn.Module):
    """Attention, then feed-forward, each normalised before and added to the stream."""

    def __init__(
        self, dim: int, heads: int, hidden_dim: int, dropout: float, bias: bool, activation: str
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens after both branches."""
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.fc2(self.activation(self.fc1(self.norm2(x)))))


class TrimVocabulary(nn.Module):
    """Leaves the logits out that pad a vocabulary of `num_classes`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T K"]:
        """Return the first `num_classes` logits."""
        return logits[..., : self.num_classes]


class GPT(BlockModel):
    """Decoder-only transformer: the logits of the next token at every position.

    Args:
        context_length: tokens that it sees at most.
        num_layers: number of blocks.
        dim: width of a token; a multiple of `heads`.
        heads: attention heads of a block.
        num_classes: tokens of the vocabulary; `None` leaves embedding and head out until
            `bind_classes`.
        hidden_dim: width inside the feed-forward network; `4 * dim` by default.
        dropout: probability in 0..1, on attention weights, branches and embeddings.
        bias: whether linears of the blocks have biases, as GPT-2's do.
        activation: of the feed-forward network: "gelu", or GPT-2's "gelu_tanh", its approximation.

    Raises:
        ConfigError: a size is not positive, `heads` does not divide `dim`, or `activation` is
            unknown.

    Example:
        >>> model = GPT(context_length=16, num_layers=2, dim=32, heads=4, num_classes=65)
        >>> model(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 65])
    """

    keeps_tokens = True

    def __init__(
        self,
        context_length: int,
        num_layers: int,
        dim: int,
        heads: int,
        num_classes: int | None = None,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(
            context_length=context_length, num_layers=num_layers, dim=dim, heads=heads,
            hidden_dim=hidden_dim,
        )  # fmt: skip
        check_share(dropout=dropout)
        check_choice(activation=(activation, ACTIVATIONS))
        if dim % heads:
            raise ConfigError(f"heads={heads} does not divide dim={dim}", fix="change heads or dim")
        self._config = {
            "context_length": context_length, "num_layers": num_layers, "dim": dim, "heads": heads,
            "num_classes": None, "hidden_dim": hidden_dim, "dropout": dropout,
            "bias": bias, "activation": activation,
        }  # fmt: skip
        self.tok_embed: nn.Embedding | None = None
        self.pos_embed = nn.Parameter(torch.empty(context_length, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            GPTBlock(dim, heads, hidden_dim, dropout, bias, activation) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head: nn.Linear | None = None
        self.trim: nn.Module | None = None
        self._reset_parameters(num_layers)
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _reset_parameters(self, num_layers: int) -> None:
        nn.init.normal_(self.pos_embed, std=0.02)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                ends_branch = name.endswith(("proj", "fc2"))
                std = 0.02 / math.sqrt(2 * num_layers) if ends_branch else 0.02
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
            embeddings=("tok_embed",),
            head=("norm", "head"),
            no_weight_decay=("pos_embed",),
        )

    @property
    def input_shape(self) -> tuple[None]:
        """Any number of tokens up to `context_length`."""
        return (None,)

    def bind_classes(self, num_classes: int) -> None:
        """Build token embedding and head, which share their weight, for a vocabulary.

        Raises:
            ConfigError: if `num_classes` is not positive.
        """
        check_positive(num_classes=num_classes)
        like = self.pos_embed
        num_rows = -(-num_classes // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        dim = self._config["dim"]
        self.tok_embed = nn.Embedding(num_rows, dim, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.tok_embed.weight, std=0.02)
        self.head = nn.Linear(dim, num_rows, bias=False, device=like.device, dtype=like.dtype)
        self.head.weight = self.tok_embed.weight
        self.trim = TrimVocabulary(num_classes)
        self._config["num_classes"] = num_classes

    def embed(self, inputs: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the tokens' embeddings with their positions.

        Raises:
            ConfigError: if the model has no vocabulary yet, or there are too many tokens.
        """
        if self.tok_embed is None:
            raise missing_head(type(self).__name__)
        num_tokens = inputs.shape[1]
        if num_tokens > len(self.pos_embed):
            raise ConfigError(
                f"{num_tokens} tokens do not fit a model with context_length={len(self.pos_embed)}",
                fix="cut the sequences, or build the model with a longer context",
            )
        return self.dropout(self.tok_embed(inputs) + self.pos_embed[:num_tokens])

    def classify(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the token after each.

        Raises:
            ConfigError: if the model has no vocabulary yet.
        """
        if self.head is None or self.trim is None:
            raise missing_head(type(self).__name__)
        return self.trim(self.head(self.norm(x)))
