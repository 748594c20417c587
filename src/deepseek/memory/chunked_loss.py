"""The loss of a language model without its logits: they exist for a part of the tokens at a time.

Logits are often the largest tensor there is: B x T x V numbers, in float32 for the loss, and their
gradient as well. Here the gradient of each part is taken as soon as its loss is known, and its
logits are gone before the next part begins. Nothing is computed twice.

Paper: Hsu et al. 2024 (Liger, section 3.2), arXiv 2410.10989; here in plain torch, for any head
that treats each token alone and any loss that is a sum over tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepseek.memory.host_copies import used_at_once


def chunked_loss(
    hidden: Tensor,
    parameters: Sequence[Tensor],
    loss_of: Callable[[Tensor, slice], Tensor],
    num_chunks: int,
) -> Tensor:
    """Return the loss summed over all tokens.

    Args:
        hidden: (B, T, D), what the head takes.
        parameters: that `loss_of` uses, and that are trained.
        loss_of: the summed loss, a scalar, of some tokens of `hidden`, (B, t, D), and which.
        num_chunks: parts that the tokens are cut into.
    """
    return _ChunkedLoss.apply(loss_of, num_chunks, hidden, *parameters)  # pyright: ignore[reportReturnType]


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss_of, num_chunks, hidden, *parameters):  # pyright: ignore[reportIncompatibleMethodOverride]
        length = -(-hidden.shape[1] // num_chunks)
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        sums: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, hidden.shape[1], length):
            tokens = slice(start, start + length)
            with torch.enable_grad(), used_at_once():
                part = hidden[:, tokens].detach().requires_grad_()
                loss = loss_of(part, tokens)
            total += loss.detach()
            found = torch.autograd.grad(loss, [part, *parameters])
            gradient[:, tokens] = found[0]
            sums = [
                new if old is None else old.add_(new)
                for old, new in zip(sums, found[1:], strict=True)
            ]
        ctx.save_for_backward(gradient, *sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *(saved * grads[0] for saved in ctx.saved_tensors)
