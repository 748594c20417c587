"""The settings of an optimizer that is described first and bound to parameters later."""

from typing import Annotated

from pydantic import Field

from deepseek.config.settings import Auto, BetaPair, Number, Settings, Switch


class OptimizerConfig(Settings):
    """An optimizer and its numbers; what is `auto` follows the optimizer and the model."""

    algorithm: str = Field(default="adamw", min_length=1)
    """Name of the optimizer: `adamw`, `sgd`, ..."""
    learning_rate: Annotated[Number, Field(gt=0)] | Auto = "auto"
    """Highest learning rate of the run."""
    weight_decay: Annotated[Number, Field(ge=0)] | Auto = "auto"
    """Weight decay, per step and unit of learning rate."""
    betas: BetaPair | Auto = "auto"
    """Decay of the first and second moment, for the Adam family."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] | Auto = "auto"
    """Momentum, for SGD and RMSprop."""
    eps: Annotated[Number, Field(gt=0)] | Auto = "auto"
    """Added to the denominator of the Adam family."""
    nesterov: Switch | Auto = "auto"
    """Nesterov's form of momentum, for SGD."""
