"""One number of a run that becomes NaN or Inf."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from deepseek.trainer.callbacks import Callback

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

PLACES = ("loss", "gradient", "weight", "optimizer", "batch")


class Poison(Callback):
    """Spoils one number in a step. It edits what callbacks must not: that is its purpose.

    Args:
        place: one of `PLACES`. `batch` needs inputs in floating point.
        value: NaN, Inf or -Inf.
        at: number of the step, from 0.
        seed: of the choice of the number.

    Attributes:
        weights: as they were before the update of that step.
    """

    def __init__(self, place: str, value: float, at: int, seed: int = 0) -> None:
        self.place, self.value, self.at = place, value, at
        self.weights: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Put itself around `accumulate`."""
        step = trainer.assembly.step
        accumulate = step.accumulate
        weights = step.parallel.weights.trained
        parameters = [weight.local for weight in weights]

        def poisoned(batch, check=lambda: None, num_samples=None, lr=0.0):
            is_due = trainer.step == self.at
            if is_due and self.place == "batch":
                batch = {**batch, "inputs": batch["inputs"].clone()}
                self._spoil(batch["inputs"])
            elif is_due and self.place == "weight":
                self._spoil(parameters[-1])
            elif is_due and self.place == "optimizer":
                self._spoil(self._state_of(step.optimizer))
            accumulated = accumulate(batch, check, num_samples, lr)
            if is_due:
                self.weights = [p.detach().clone() for p in parameters]
                if self.place == "gradient":
                    self._spoil(next(g for w in weights if (g := w.parameter.grad) is not None))
                elif self.place == "loss":
                    loss_sum = accumulated.loss_sum * self.value
                    return accumulated._replace(loss_sum=loss_sum)
            return accumulated

        step.accumulate = poisoned

    def _state_of(self, optimizer: torch.optim.Optimizer) -> Tensor:
        for state in optimizer.state.values():
            tensors = [v for v in state.values() if isinstance(v, Tensor) and v.ndim > 0]
            tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
            if tensors:
                return tensors[-1 if self.value > 0 else 0]
        raise ValueError("this optimizer keeps no state")

    def _spoil(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        flat = tensor.detach().view(-1)
        flat[int(torch.randint(len(flat), (1,), generator=self._generator))] = self.value
