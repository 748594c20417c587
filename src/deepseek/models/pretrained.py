"""Models of transformers as this library takes models: from one tensor to logits.

A class such as `LlamaForCausalLM` takes a mask beside its tokens and returns an object that holds
logits among other things. transformers is not imported here: where nobody has, there is no such
model.

Shapes: B batch, T tokens.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError


class PretrainedLogits(nn.Module):
    """A model of transformers, whose outputs are its logits.

    Args:
        model: of transformers; stays as it is, and is trained in place.

    Attributes:
        pad_token: that no other token attends to; `None`: all tokens are seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pad_token: int | None = None
        takes = inspect.signature(model.forward).parameters
        self._takes_mask = "attention_mask" in takes
        # keys and values of a sequence that nobody continues
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of tokens (B, T), or of pixels.

        Raises:
            ConfigError: the model returns none.
        """
        options = self._options
        if self.pad_token is not None and self._takes_mask:
            options = {**options, "attention_mask": (inputs != self.pad_token).long()}
        found = logits_of(self.model(inputs, **options))
        if isinstance(found, Tensor):
            return found
        name = type(self.model).__name__
        raise ConfigError(
            f"{name} returns {type(found).__name__}, which holds no logits",
            fix="take a class with a head, such as AutoModelForSequenceClassification, or put"
            f" {name} into a module of yours that returns a tensor",
        )

    def bind(self, spec: DataSpec) -> None:
        """Agree with the data on padding, vocabulary and classes.

        Where the data do not say what they are filled up with, it is what the model says, but for
        language modelling: its labels say what counts, and `pad_token_id` may be a real token.

        Raises:
            ConfigError: they cannot agree.
        """
        config: Any = self.model.config
        text = config.get_text_config()
        own, pad = getattr(text, "pad_token_id", None), spec.pad_token
        if pad is not None and own is None:
            text.pad_token_id = pad  # a classifier looks for the last token before it
        elif pad is not None and own != pad:
            raise ConfigError(
                f"sequences are filled up with token {pad}, the model has pad_token_id={own}",
                fix=f"set model.config.pad_token_id = {pad}",
            )
        inputs = spec.fields.get("inputs")
        is_text = inputs is not None and inputs.dtype == "int64"
        if pad is None and is_text and spec.task not in ("language_modelling", "unknown"):
            pad = own
        self.pad_token = pad
        num_labels = getattr(config, "num_labels", None)
        is_classifier = type(self.model).__name__.endswith("Classification")
        if is_classifier and isinstance(num_labels, int) and num_labels < spec.num_classes:
            raise ConfigError(
                f"the model has num_labels={num_labels}, the data {spec.num_classes} classes",
                fix=f"build the model with num_labels={spec.num_classes}",
            )


def logits_of(outputs: Any) -> Any:
    """Return `outputs["logits"]` of a mapping that has them, anything else as it is."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return outputs


def as_logits(module: nn.Module) -> nn.Module:
    """Return a model of transformers so that it gives logits, any other module as it is."""
    found = find_transformers_model(module)
    return PretrainedLogits(module) if found is not None and found[1] is module else module


def given_module(module: nn.Module) -> nn.Module:
    """Return what `as_logits` was given."""
    return module.model if isinstance(module, PretrainedLogits) else module


def find_transformers_model(module: nn.Module) -> tuple[str, Any] | None:
    """Return name and object of the model of transformers that a module is or holds, if any."""
    loaded = sys.modules.get("transformers.modeling_utils")
    if loaded is None:
        return None
    every = module.named_modules()
    return next((each for each in every if isinstance(each[1], loaded.PreTrainedModel)), None)
