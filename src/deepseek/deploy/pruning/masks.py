"""Masks over the weights of a run: found, applied after each step, and saved with it."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prunable_weights(module: nn.Module, skip: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of linears and convolutions by full name.

    Args:
        module: a model.
        skip: names of modules, or beginnings of them, that are left out.
    """
    return {
        f"{name}.weight": part.weight
        for name, part in module.named_modules()
        if isinstance(part, PRUNABLE) and not f"{name}.weight".startswith(tuple(skip) or ("\0",))
    }


class WeightMasks:
    """Which weights of a run are kept, `True`, and which are zero.

    Attributes:
        masks: name -> mask, of the shape of the weight.
        weights: name -> the weight that is trained.
    """

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self._averaged: dict[str, Tensor] = {}
        self._alive_zeros: dict[str, list[int]] = {}

    def find(self, trainer: "Trainer", skip: Collection[str], *, keeps_all: bool) -> None:
        """Find the weights, and the masks of a run that goes on.

        Args:
            trainer: of the run.
            skip: as in `prunable_weights`.
            keeps_all: begin a new run with no weight masked, rather than with those that are zero.

        Raises:
            ConfigError: weights are divided between ranks, or there are none.
        """
        plan = trainer.world.plan
        if plan.divides_weights or plan.pp > 1:
            raise ConfigError(
                f"pruning in training with parallel={plan.describe()}: a rank sees a part of the"
                " weights only",
                fix="use parallel=dp, or prune afterwards",
            )
        step = trainer.assembly.step
        chosen = prunable_weights(trainer.model.module, skip)
        held = {weight.name: weight.local for weight in step.parallel.weights.trained}
        self.weights = {name: held[name] for name in held if name in chosen}
        if not self.weights:
            raise ConfigError(
                "there is nothing to prune: no linear or convolution is trained",
                fix="change skip, or unfreeze the model",
            )
        if step.ema is not None:
            averaged = step.ema.named()
            self._averaged = {name: averaged[name] for name in self.weights}
        is_new = trainer.step == 0
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool) if is_new and keeps_all else weight != 0
            for name, weight in self.weights.items()
        }
        if not is_new:
            for name, places in self._alive_zeros.items():
                # weights may lie in memory as channels-last: places are counted by their shape
                where = torch.tensor(places, device=self.masks[name].device)
                self.masks[name][torch.unravel_index(where, self.masks[name].shape)] = True

    @torch.no_grad()
    def apply(self, trainer: "Trainer") -> None:
        """Zero what is masked, in the weights and in their moving average."""
        for name, mask in self.masks.items():
            self.weights[name].mul_(mask)
            if name in self._averaged:
                self._averaged[name].mul_(mask)
        trainer.assembly.step.guard.note_update()  # it was us

    def measured(self) -> float:
        """Return the share of zeros."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / max(1, total)

    def describe(self) -> str:
        """Return the share of zeros, in all and layer by layer."""
        layers = ", ".join(
            f"{name.removesuffix('.weight')} {1 - float(mask.float().mean()):.0%}"
            for name, mask in self.masks.items()
        )
        return f"{self.measured():.1%} of the weights are zero: {layers}"

    def state_dict(self) -> dict:
        """Return what the weights do not tell: which of their zeros are not masked."""
        return {
            "alive_zeros": {
                name: places.tolist()
                for name, mask in self.masks.items()
                if len(places := (mask & (self.weights[name] == 0)).flatten().nonzero().flatten())
            }
        }

    def load_state_dict(self, state: dict) -> None:
        """Take it back."""
        self._alive_zeros = dict(state["alive_zeros"])
