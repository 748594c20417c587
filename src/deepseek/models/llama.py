"""Llama: a decoder-only transformer with rotary positions, grouped queries and gated features.

Papers: Touvron et al. 2023 (Llama 2), arXiv 2307.09288; Grattafiori et al. 2024 (Llama 3), arXiv
2407.21783. Of it: rotary positions (Su et al. 2021, arXiv 2104.09864), heads of keys and values
that serve several heads of queries (Ainslie et al. 2023, arXiv 2305.13245), SwiGLU (Shazeer 2020,
arXiv 2002.05202, eq. 6), RMSNorm before each branch (Zhang & Sennrich 2019, arXiv 1910.07467).
Mistral's weights (Jiang et al. 2023, arXiv 2310.06825) fit up to its window of 4,096 tokens, and
Qwen2's (Yang et al. 2024, arXiv 2407.10671) with biases of queries, keys and values, Qwen3's (Yang
et al. 2025, arXiv 2505.09388) with norms of queries and keys in their place (Dehghani et al. 2023,
arXiv 2302.05442, section 2). Weights begin as GPT-2's do: normal, and smaller by `sqrt(2
num_layers)` where a branch ends (the papers do not say).

Queries, keys and values have a projection each: of fewer heads, they cannot be cut alike.

Shapes: B batch, T tokens, D dim, E head_dim.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.attention import causal_attention
from deepseek.models.checks import check_positive
from deepseek.models.decoder import Decoder, reset_blocks
from deepseek.models.hints import ParallelHints
from deepseek.models.kv_cache import LayerCache
from deepseek.models.rotary import Rotary, rotate
from deepseek.published import gated_hidden_dim


class GroupedAttention(nn.Module):
    """Causal self-attention in which several heads of queries share one of keys and values."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        qk_norm_eps: float | None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(dim, heads * head_dim, bias=qkv_bias)
        self.k = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, kv_heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(heads * head_dim, dim, bias=False)
        has_norms = qk_norm_eps is not None
        self.q_norm = nn.RMSNorm(head_dim, eps=qk_norm_eps) if has_norms else None
        self.k_norm = nn.RMSNorm(head_dim, eps=qk_norm_eps) if has_norms else None
        self.attend = causal_attention  # context parallelism puts its own here

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, counted from the projection."""
        return self.k.out_features // self.head_dim

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        *,
        rotation: Float[Tensor, "B T E"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Let every token attend to those up to it."""
        # Heads are counted from the projections: under tensor parallelism a rank has some of them.
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attend = self.attend if cache is None else cache.attend
        mixed = attend(rotate(q, rotation), rotate(k, rotation), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A feed-forward network whose features are gated by others."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return `down(silu(gate(x)) * up(x))`."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each normalised before and added to the stream."""

    def __init__(self, attn: GroupedAttention, dim: int, hidden_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.RMSNorm(dim, eps=norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Float[Tensor, "B T E"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens after both branches."""
        x = x + self.attn(self.norm1(x), rotation=rotation, cache=cache)
        return x + self.mlp(self.norm2(x))


class Llama(Decoder):
    """Decoder-only transformer of the Llama family: the logits of the next token at every position.

    Args:
        context_length: tokens that it sees at most.
        num_layers: number of blocks.
        dim: width of a token.
        heads: heads of queries of a block.
        num_classes: tokens of the vocabulary; `None` leaves embedding and head out until
            `bind_classes`.
        kv_heads: heads of keys and values, a divisor of `heads`, which is the default.
        hidden_dim: features inside the feed-forward network; by default 8/3 of `dim`, rounded up to
            a multiple of 256.
        head_dim: width of a head, even; `dim / heads` by default.
        rope_theta: base of the rotary wavelengths: 10,000 in Llama 2, 500,000 in Llama 3.
        rope_scaling: how these are stretched, as Llama 3.1 writes it: `factor`, `low_freq_factor`,
            `high_freq_factor`, `original_max_position_embeddings`; `None`: not at all.
        norm_eps: what the norms add to a mean square.
        tied: share the weight of embedding and head.
        qkv_bias: biases of queries, keys and values.
        qk_norm: normalise each head of queries and keys, as Qwen3 does.

    Raises:
        ConfigError: a size is not positive, `kv_heads` does not divide `heads`, `heads` does not
            divide `dim` where there is no `head_dim`, or `rope_scaling` is another's.

    Example:
        >>> model = Llama(
        ...     context_length=16, num_layers=2, dim=32, heads=4, kv_heads=2, num_classes=65
        ... )
        >>> model(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 65])
    """

    token_arguments = ("rotation",)

    def __init__(
        self,
        context_length: int,
        num_layers: int,
        dim: int,
        heads: int,
        num_classes: int | None = None,
        kv_heads: int | None = None,
        hidden_dim: int | None = None,
        head_dim: int | None = None,
        rope_theta: float = 10_000.0,
        rope_scaling: Mapping[str, object] | None = None,
        norm_eps: float = 1e-5,
        tied: bool = False,
        qkv_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        check_positive(context_length=context_length, num_layers=num_layers, dim=dim, heads=heads)
        hidden_dim = gated_hidden_dim(dim) if hidden_dim is None else hidden_dim
        head_dim = _default_head_dim(dim, heads) if head_dim is None else head_dim
        check_positive(kv_heads=kv_heads, hidden_dim=hidden_dim, head_dim=head_dim)
        if heads % kv_heads:
            raise ConfigError(
                f"kv_heads={kv_heads} does not divide heads={heads}", fix="change heads or kv_heads"
            )
        if not norm_eps > 0:
            raise ConfigError(f"norm_eps={norm_eps} is not above 0", fix="use 1e-5")
        scaling = None if rope_scaling is None else dict(rope_scaling)
        self._config = {
            "context_length": context_length, "num_layers": num_layers, "dim": dim, "heads": heads,
            "num_classes": None, "kv_heads": kv_heads, "hidden_dim": hidden_dim,
            "head_dim": head_dim, "rope_theta": rope_theta, "rope_scaling": scaling,
            "norm_eps": norm_eps, "tied": tied, "qkv_bias": qkv_bias,
            "qk_norm": qk_norm,
        }  # fmt: skip
        self._rotary = Rotary(head_dim, rope_theta, scaling)
        self.tok_embed: nn.Embedding | None = None
        self.blocks = nn.ModuleList(
            LlamaBlock(
                GroupedAttention(
                    dim, heads, kv_heads, head_dim, qkv_bias, norm_eps if qk_norm else None
                ),
                dim, hidden_dim, norm_eps,
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.norm = nn.RMSNorm(dim, eps=norm_eps)
        self.head: nn.Linear | None = None
        self.trim: nn.Module | None = None
        reset_blocks(self.blocks, ends=("proj", "down"))
        if num_classes is not None:
            self.bind_classes(num_classes)

    @property
    def hints(self) -> ParallelHints:
        """What the parts are for."""
        return ParallelHints(
            blocks=("blocks",),
            column_linears=("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"),
            row_linears=("attn.proj", "mlp.down"),
            head_norms=("attn.q_norm", "attn.k_norm") if self._config["qk_norm"] else (),
            heads=self._config["heads"],
            kv_heads=self._config["kv_heads"],
            embeddings=("tok_embed",),
            head=("norm", "head"),
        )

    @property
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Of each block: heads of keys and values, and the width of a head."""
        attentions = [part for part in self.blocks.modules() if isinstance(part, GroupedAttention)]
        return [(attn.kv_heads, attn.head_dim) for attn in attentions]

    @property
    def is_tied(self) -> bool:
        """Whether embedding and head share their weight."""
        return self._config["tied"]

    def embed(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the vectors of tokens; their positions come in the blocks.

        Raises:
            ConfigError: if the model has no vocabulary yet, or there are too many tokens.
        """
        del positions
        return self.embed_tokens(inputs)

    def beside(
        self, inputs: Int[Tensor, "B T"], positions: Int[Tensor, "B T"] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the angles that queries and keys are turned by, (B, T, E)."""
        if positions is None:
            # one row for all, seen B times: a pipeline cuts what is beside the stream by samples
            row = torch.arange(inputs.shape[1], device=inputs.device)[None]
            return {"rotation": self._rotary.rotation(row).expand(inputs.shape[0], -1, -1)}
        return {"rotation": self._rotary.rotation(positions)}


def _default_head_dim(dim: int, heads: int) -> int:
    if dim % heads:
        raise ConfigError(
            f"heads={heads} does not divide dim={dim}", fix="change heads or dim, or give head_dim"
        )
    return dim // heads
