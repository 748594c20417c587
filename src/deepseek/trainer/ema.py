"""Exponential moving average of the weights: evaluated and saved in place of the last ones.

`ema <- d ema + (1 - d) weights` after each update, with `d = min(decay, (1 + n) / (10 + n))` at the
n-th update, so that a short run is not held back by its start (Polyak & Juditsky 1992; the warm-up
is TensorFlow's).
"""

import torch
from torch import Tensor

from deepseek.parallel.apply import ParallelModel


class ExponentialMovingAverage:
    """A second model whose weights follow those of the first.

    Buffers (running statistics) are copied, not averaged.

    Args:
        source: the model that is trained.
        average: another of the same weights, spread over ranks in the same way.
        decay: share that stays at each update, in [0, 1).

    Attributes:
        average: the averaged model, in eval mode.
    """

    def __init__(self, source: ParallelModel, average: ParallelModel, decay: float) -> None:
        self.decay = decay
        self.average = average
        self._source = source
        average.engine.eval().requires_grad_(False)
        pairs = [
            (mine.local.detach(), theirs.local)
            for mine, theirs in zip(average.weights.weights, source.weights.weights, strict=True)
            if theirs.local.is_floating_point() or theirs.local.is_complex()
            if theirs.local.numel()
        ]
        self._averaged = [mine for mine, _ in pairs]
        self._weights = [theirs for _, theirs in pairs]

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Follow the weights by one update.

        Args:
            num_updates: number of the update, from 0.
        """
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self._averaged, self._weights, 1 - decay
        )

    @torch.no_grad()
    def follow_buffers(self) -> None:
        """Take the buffers of the trained model; called before the average is used."""
        averaged = self.average.buffers()
        for name, buffer in self._source.buffers().items():
            averaged[name].copy_(buffer)

    def named(self) -> dict[str, Tensor]:
        """Return the averaged weights that this rank holds, by name, not copied."""
        return {w.name: w.local.detach() for w in self.average.weights.weights}
