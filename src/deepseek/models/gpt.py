"""GPT: a decoder-only transformer over tokens.

Paper: Radford et al. 2019 (GPT-2), section 2.3: normalisation before each branch, residual
projections begun smaller by `sqrt(2 num_layers)`, output tied to the token embedding. Departures:
no biases beside those of the norms and an exact GELU, unless asked for (`bias`, `activation`:
published weights need them). The "classes" of this classifier are the tokens of its vocabulary.

Shapes: B batch, T tokens, D dim.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import attention, causal_attention
from deepseek.models.checks import check_choice, check_positive, check_share
from deepseek.models.decoder import INIT_STD, Decoder, reset_blocks
from deepseek.models.dropout import Dropout
from deepseek.models.hints import ParallelHints
from deepseek.models.kv_cache import LayerCache

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

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, counted from the projection."""
        return self.qkv.out_features // (3 * self.head_dim)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B 1 T T"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Let every token attend to those up to it, or to those whose `mask` is `True`."""
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attend = self.attend if cache is None else cache.attend
        if mask is not None:
            attend = partial(attention, mask=mask)
        mixed = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
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
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B 1 T T"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens after both branches."""
        x = x + self.dropout(self.attn(self.norm1(x), mask, cache))
        return x + self.dropout(self.fc2(self.activation(self.fc1(self.norm2(x)))))


class GPT(Decoder):
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
        document_token: the token with which a document begins; what follows it sees nothing before
            it, and is counted from it. `None`: a sequence is one document, and attention is faster.

    Raises:
        ConfigError: a size is not positive, `heads` does not divide `dim`, or `activation` is
            unknown.

    Example:
        >>> model = GPT(context_length=16, num_layers=2, dim=32, heads=4, num_classes=65)
        >>> model(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 65])
    """

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
        document_token: int | None = None,
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
            "document_token": document_token,
        }  # fmt: skip
        self.document_token = document_token
        self.tok_embed: nn.Embedding | None = None
        self.pos_embed = nn.Parameter(torch.empty(context_length, dim))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            GPTBlock(dim, heads, hidden_dim, dropout, bias, activation) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head: nn.Linear | None = None
        self.trim: nn.Module | None = None
        self._reset_parameters()
        if num_classes is not None:
            self.bind_classes(num_classes)

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.pos_embed, std=INIT_STD)
        reset_blocks(self.blocks, ends=("proj", "fc2"))

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
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Of each block: heads of keys and values, and the width of a head."""
        attentions = [part for part in self.blocks.modules() if isinstance(part, CausalAttention)]
        return [(attn.kv_heads, attn.head_dim) for attn in attentions]

    def separate_documents(self, document_token: int) -> None:
        """From now on, let no token see what is before the last `document_token` up to it."""
        self.document_token = self._config["document_token"] = document_token

    def embed(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens' embeddings with their positions in the document.

        Raises:
            ConfigError: if the model has no vocabulary yet, or there are too many tokens.
        """
        x = self.embed_tokens(inputs)
        where: slice | Tensor = slice(inputs.shape[1])
        if positions is not None:
            where = positions
        elif self.document_token is not None:
            places = torch.arange(inputs.shape[1], device=inputs.device)
            begins = torch.where(inputs == self.document_token, places, 0).cummax(1).values
            where = places - begins
        return self.dropout(x + self.pos_embed[where])

    def beside(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the mask of the same document up to a token, (B, 1, T, T).

        Tokens that come with positions are those of one document, which a cache has the rest of.
        """
        if self.document_token is None or positions is not None:
            return {}
        document = (inputs == self.document_token).cumsum(1)
        is_same = document[:, None, :, None] == document[:, None, None, :]
        return {"mask": is_same.tril()}
