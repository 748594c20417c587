"""How fast each layer learns: slower the farther it is from the head, and later.

Paper: Howard & Ruder 2018 (ULMFiT), arXiv 1801.06146, section 3.2, discriminative fine-tuning and
gradual unfreezing. Departure: a layer that waits has a learning rate of 0; its gradient is computed
all the same, so that a step is the same on any number of ranks and costs what it always does.
"""

from dataclasses import dataclass

import torch

from deepseek.config import TrainerConfig
from deepseek.datasets import DataLoader
from deepseek.models import ModelEngine
from deepseek.models.depth import distances


@dataclass(frozen=True)
class LayerPace:
    """What the distance of a weight from the head says of its learning rate.

    Attributes:
        distances: of each weight by name, in blocks.
        decay: share of the learning rate that is left for each block of distance.
        unfreeze_steps: steps after which one more block begins to learn; 0: all do at once.
    """

    distances: dict[str, int]
    decay: float
    unfreeze_steps: int

    def settings(self, distance: int) -> dict[str, float | int]:
        """Return what a group of weights at a distance is given, for `set_rates`."""
        starts_at = distance * self.unfreeze_steps
        return {"lr_share": self.decay**distance, "starts_at": starts_at}


def choose_pace(config: TrainerConfig, engine: ModelEngine, loader: DataLoader) -> LayerPace | None:
    """Return what the settings say of layers, or `None` where all learn alike.

    Raises:
        ConfigError: the model does not say what its blocks are.
    """
    if config.layer_decay == 1 and config.unfreeze_every is None:
        return None
    steps = config.unfreeze_every or 0
    if steps == "epoch":
        steps = loader.count_batches(0)
    names = dict(engine.module.named_parameters())
    return LayerPace(distances(engine.module, engine.hints, names), config.layer_decay, steps)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
    """Give each group of weights its learning rate for an update.

    Args:
        optimizer: bound, with or without a pace.
        lr: of the schedule, which the head has.
        step: number of the update, from 0.
    """
    for group in optimizer.param_groups:
        waits = step < group.get("starts_at", 0)
        group["lr"] = 0.0 if waits else lr * group.get("lr_share", 1.0)
