"""The settings of the model: which architecture, with which arguments and weights."""

from typing import Any

from pydantic import Field

from deepseek.config.settings import Settings, Switch


class ModelConfig(Settings):
    """A model by name."""

    architecture: str = Field(min_length=1)
    """Name of the architecture: `vit`, `resnet50`, ..., or `timm/NAME`."""
    pretrained: Switch = False
    """Whether to start from published weights (downloaded once)."""
    weights: str | None = None
    """Path of a model file to start from. `null`: none."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the architecture, such as `dim` and `num_layers`."""
