"""Context parallelism: the tokens of a sequence divided between ranks.

Every rank computes its own queries, and gathers keys and values of all tokens: as Grattafiori et
al. 2024 (Llama 3), arXiv 2407.21783, section 3.3.2. (torch's own ring, in
`torch.distributed.tensor.experimental`, has no kernels for a CPU.) With a causal mask a rank holds
one part from the beginning and one from the end, so that all have the same work.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from deepseek.models.attention import attention
from deepseek.models.classifier import BlockModel

IGNORE_INDEX = -100


class TokenShare:
    """Which tokens of a sequence this rank holds.

    Args:
        group: the ranks of `cp`.
        device_type: `cpu` or `cuda`.
        is_causal: whether later tokens are more work.
    """

    def __init__(self, group: dist.ProcessGroup, device_type: str, *, is_causal: bool) -> None:
        self.mesh = DeviceMesh.from_group(group, device_type)
        self.rank = dist.get_rank(group)
        self.degree = dist.get_world_size(group)
        self.is_causal = is_causal

    def runs(self, num_tokens: int, rank: int | None = None) -> list[tuple[int, int]]:
        """Return the tokens of a rank as (first, end); what lies beyond the sequence is padding."""
        rank = self.rank if rank is None else rank
        if self.is_causal and num_tokens % (2 * self.degree) == 0:
            half = num_tokens // (2 * self.degree)
            last = 2 * self.degree - 1 - rank
            return [(rank * half, (rank + 1) * half), (last * half, (last + 1) * half)]
        size = -(-num_tokens // self.degree)
        return [(rank * size, (rank + 1) * size)]

    def cut(self, tensor: Tensor, dim: int, fill: float = 0) -> Tensor:
        """Return this rank's tokens of a whole sequence, filled up where there are fewer."""
        runs = self.runs(tensor.shape[dim])
        missing = max(0, max(end for _, end in runs) - tensor.shape[dim])
        if missing:
            pad = [0, 0] * (tensor.ndim - dim - 1) + [0, missing]
            tensor = F.pad(tensor, pad, value=fill)
        return torch.cat([tensor.narrow(dim, a, b - a) for a, b in runs], dim)

    def gather(self, tensor: Tensor, dim: int, num_tokens: int) -> Tensor:
        """Return all tokens in order; the gradient of each rank's use of them is added up."""
        parts = DTensor.from_local(tensor, self.mesh, (Shard(dim),), run_check=False)
        whole = parts.redistribute(placements=(Replicate(),)).to_local(grad_placements=[Partial()])
        if self.is_causal and num_tokens % (2 * self.degree) == 0:
            halves = whole.chunk(2 * self.degree, dim)
            first, last = halves[0::2], halves[1::2][::-1]
            return torch.cat([*first, *last], dim)
        return whole.narrow(dim, 0, num_tokens)


class ContextAttention:
    """Attention of this rank's tokens to those of all ranks; put in place of a module's `attend`.

    Attributes:
        num_tokens: of the whole sequence; set when a batch enters the blocks.
    """

    def __init__(self, share: TokenShare, entry: "Entry") -> None:
        self._share = share
        self._entry = entry

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        """Return `softmax(q k^T / sqrt(E)) v` for (B, H, T, E), T this rank's tokens."""
        num_tokens = self._entry.num_tokens
        k, v = (self._share.gather(each, 2, num_tokens) for each in (k, v))
        if not self._share.is_causal:
            return attention(q, k, v, mask=mask, dropout=dropout)
        outputs, start = [], 0
        for first, end in self._share.runs(num_tokens):
            part = q[:, :, start : start + end - first]
            start += end - first
            outputs.append(_attend_up_to(part, k[:, :, :end], v[:, :, :end], first, dropout))
        return torch.cat(outputs, 2)


def _attend_up_to(q: Tensor, k: Tensor, v: Tensor, first: int, dropout: float) -> Tensor:
    """Let query i attend to keys up to `first + i`."""
    rows = torch.arange(first, first + q.shape[2], device=q.device)
    columns = torch.arange(k.shape[2], device=q.device)
    return attention(q, k, v, mask=rows[:, None] >= columns, dropout=dropout)


class Entry:
    """Cuts the tokens before the first block, and remembers how many there were."""

    def __init__(self, share: TokenShare) -> None:
        self._share = share
        self.num_tokens = 0

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Forward pre-hook."""
        self.num_tokens = args[0].shape[1]
        return (self._share.cut(args[0], 1), *args[1:]), kwargs


class _Exit:
    def __init__(self, share: TokenShare, entry: Entry) -> None:
        self._share = share
        self._entry = entry

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self._share.gather(output, 1, self._entry.num_tokens)


class _CutBeside:
    """A model's `beside`, with this rank's tokens of what goes with tokens."""

    def __init__(self, model: BlockModel, share: TokenShare) -> None:
        self._beside = model.beside
        self._names = model.token_arguments
        self._share = share

    def __call__(self, inputs: Tensor) -> dict[str, Tensor]:
        whole = self._beside(inputs)
        return {
            name: self._share.cut(each, 1) if name in self._names else each
            for name, each in whole.items()
        }


class ContextParallel:
    """Divides the tokens in the blocks of a model.

    Args:
        model: all or a stage of it; changed in place.
        group: the ranks of `cp`.
        device_type: `cpu` or `cuda`.
    """

    def __init__(self, model: BlockModel, group: dist.ProcessGroup, device_type: str) -> None:
        self.keeps_tokens = model.keeps_tokens
        self._share = TokenShare(group, device_type, is_causal=model.is_causal)
        self.entry = Entry(self._share)
        self.adopt(model)

    def adopt(self, model: BlockModel) -> None:
        """Put our attention in the place of the model's, and cut what goes with its tokens."""
        model.divides_tokens = True
        for module in model.modules():
            if "attend" in vars(module):
                vars(module)["attend"] = ContextAttention(self._share, self.entry)
        if model.token_arguments:
            vars(model)["beside"] = _CutBeside(model, self._share)

    def begin(self, first: nn.Module) -> None:
        """Cut the tokens before this block."""
        first.register_forward_pre_hook(self.entry, with_kwargs=True)

    def end(self, last: nn.Module) -> None:
        """Put the tokens together after this block, if the head needs all of them."""
        if not self.keeps_tokens:
            last.register_forward_hook(_Exit(self._share, self.entry))

    def cut_targets(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch with the targets (B, T) of this rank's tokens."""
        if not self.keeps_tokens:
            return batch
        return {**batch, "targets": self._share.cut(batch["targets"], 1, IGNORE_INDEX)}

    def gather(self, outputs: Tensor, num_tokens: int) -> Tensor:
        """Return the outputs (B, T, ...) of all tokens."""
        return self._share.gather(outputs, 1, num_tokens)
