"""Scaled dot-product attention that is fast on a CPU as well.

Papers: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; Ainslie et al. 2023, arXiv 2305.13245: each of
G heads of keys and values serves H / G heads of queries. Shapes: B batch, H heads, G heads of keys
and values, T queries, S keys, E head_dim.

torch's fused attention on a CPU recomputes the scores in its backward, in blocks meant for long
sequences. Up to a few hundred tokens, plain matrix products that keep the probabilities are faster:
a training step of ViT-S/16 (16 images of 197 tokens, bfloat16, 2 cores) takes 1.43 s
instead of 1.78 s. Everywhere else the fused kernel is used.

On a Hopper GPU torch prefers cuDNN's, from 2.11 on. With a mask its backward pass may return NaN
(pytorch issue 196678), nothing is promised of a query that may attend to no key, and each new
length is a new kernel to be built: where there is a mask, it is left out.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepseek.models.dropout import dropout as drop

MAX_EXPLICIT_SCORES = 512 * 512
"""Scores (T x S) of one head of one sample up to which a CPU keeps them: half a MiB in bfloat16."""
MASKED_ON_GPU = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels that take a mask, and give zeros where a query may attend to nothing."""


def attention(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G S E"],
    v: Float[Tensor, "B G S E"],
    *,
    mask: Bool[Tensor, "#B #H #T S"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T E"]:
    """Return `softmax(q k^T / sqrt(E)) v`.

    Args:
        q: queries.
        k: keys, of as many heads or a divisor.
        v: values.
        mask: `True` where a query may attend to a key, the same for all heads where there are
            fewer of keys; a query that may attend to none gets zeros.
        dropout: probability of dropping an attention weight, in 0..1. The caller passes 0 outside
            training.
    """
    if q.shape[1] != k.shape[1]:
        return _grouped_attention(q, k, v, mask, dropout)
    if _prefers_explicit(q, k):
        return _explicit_attention(q, k, v, mask, dropout)
    if mask is not None and q.device.type == "cuda":
        with sdpa_kernel(MASKED_ON_GPU):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def causal_attention(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B G T E"],
    v: Float[Tensor, "B G T E"],
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T E"]:
    """Return `softmax(q k^T / sqrt(E)) v` where no query attends to a key after it.

    Args:
        q: queries.
        k: keys, of as many heads or a divisor.
        v: values.
        dropout: probability of dropping an attention weight, in 0..1.
    """
    is_grouped = q.shape[1] != k.shape[1]
    if _prefers_explicit(q, k):
        num_tokens = q.shape[-2]
        mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=q.device).tril()
        if is_grouped:
            return _grouped_attention(q, k, v, mask, dropout)
        return _explicit_attention(q, k, v, mask, dropout, can_be_empty=False)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=is_grouped
    )


def _grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Let the heads of queries that share keys be more queries of one head: nothing is copied.

    torch's own `enable_gqa` has no fast kernel for a mask.
    """
    num_groups, num_queries = k.shape[1], q.shape[2]
    rows = q.unflatten(1, (num_groups, -1)).flatten(2, 3)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], num_queries, -1)
        mask = mask.repeat(*[1] * (mask.ndim - 2), q.shape[1] // num_groups, 1)
    mixed = attention(rows, k, v, mask=mask, dropout=dropout)
    return mixed.unflatten(2, (-1, num_queries)).flatten(1, 2)


def _prefers_explicit(q: Tensor, k: Tensor) -> bool:
    # Not a question of batch size: that would tie an exported or compiled graph to one batch size.
    return (
        q.device.type == "cpu"
        and torch.is_grad_enabled()
        and q.requires_grad
        and q.shape[-2] * k.shape[-2] <= MAX_EXPLICIT_SCORES
        and not torch.compiler.is_exporting()
    )


def _explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    *,
    can_be_empty: bool = True,
) -> Tensor:
    # Scaling q rather than the scores touches T x E numbers instead of T x S.
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    if mask is not None:
        # Added, which costs the backward pass nothing; filling the scores would once more. The
        # lowest number, as of a row of -inf the softmax is NaN, and so its gradient.
        lowest = torch.finfo(scores.dtype).min
        scores = scores + scores.new_zeros(mask.shape).masked_fill_(~mask, lowest)
    probs = scores.softmax(-1)
    if mask is not None and can_be_empty and _has_empty_row(mask):
        probs = probs.masked_fill(~mask, 0.0)
    return (drop(probs, dropout) if dropout else probs) @ v


def _has_empty_row(mask: Tensor) -> bool:
    """Return whether some query may attend to no key; `True` where that cannot be looked up."""
    if isinstance(mask, FakeTensor) and not torch.compiler.is_compiling():
        return False  # on paper, as data are
    if type(mask) is not Tensor or torch.compiler.is_compiling():  # divided, in a graph
        return True
    return not bool(mask.any(-1).all())
