"""Exponential moving average of the weights: evaluated and saved in place of the last ones.

`ema <- d ema + (1 - d) weights` after each update, with `d = min(decay, (1 + n) / (10 + n))` at the
n-th update, so that a short run is not held back by its start (Polyak & Juditsky 1992; the warm-up
is TensorFlow's).
"""

import copy

import torch
from torch import Tensor

from deepseek.models import ModelEngine


class ExponentialMovingAverage:
    """A second model whose weights follow those of the first.

    Buffers (running statistics) are copied, not averaged.

    Args:
        engine: the model that is trained, on its device.
        decay: share that stays at each update, in [0, 1).

    Attributes:
        engine: the averaged model, in eval mode.
    """

    def __init__(self, engine: ModelEngine, decay: float) -> None:
        self.decay = decay
        self._source = engine
        self.engine = copy.deepcopy(engine).eval().requires_grad_(False)
        averaged = dict(self.engine.module.named_parameters())
        pairs = [(averaged[n], p) for n, p in engine.module.named_parameters()]
        self._averaged: list[Tensor] = [mine for mine, p in pairs if p.is_floating_point()]
        self._weights: list[Tensor] = [p for _, p in pairs if p.is_floating_point()]

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
        averaged = dict(self.engine.module.named_buffers())
        for name, buffer in self._source.module.named_buffers():
            averaged[name].copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by name, not copied."""
        return dict(self.engine.module.named_parameters())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take averaged weights."""
        for name, parameter in self.engine.module.named_parameters():
            parameter.copy_(state[name])
