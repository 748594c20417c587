"""Layers that compute as if they were quantised, and are trained: quantisation-aware training.

Weights and inputs are rounded to int8 and uint8 in the forward pass, and kept in float; gradients
pass the rounding as if it was not there, and are zero where a value was cut off. The range of the
inputs follows by a moving average. Jacob et al. 2017, arXiv 1712.05877, section 3.

The change `quantisation-aware` of a model file holds `layers`, a list of names, and
`is_symmetric`.
"""

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.quantized import LIMIT, MAX_CODE, Product, operation_of, weight_scale, why_not

CHANGE = "quantisation-aware"
AVERAGING = 0.01
"""Share of a new batch in the range of the inputs."""


class QuantizationAwareLayer(nn.Module):
    """A linear or convolution that is rounded as `int8_static` does it; names stay.

    Args:
        layer: whose weights are taken, not copied.
        is_symmetric: whether zero has the middle code.
    """

    def __init__(self, layer: Product, is_symmetric: bool) -> None:
        super().__init__()
        self._plain = (layer,)  # in a tuple: no part of this module
        self.weight, self.bias = layer.weight, layer.bias
        self.operation = operation_of(layer)
        self.is_symmetric = is_symmetric
        device = layer.weight.device
        # what torch's operator keeps
        self.input_min: Tensor
        self.input_max: Tensor
        self.input_scale: Tensor
        self.input_zero_point: Tensor
        self.is_observed: Tensor
        self.register_buffer("input_min", torch.full((), torch.inf, device=device))
        self.register_buffer("input_max", torch.full((), -torch.inf, device=device))
        self.register_buffer("input_scale", torch.ones(1, device=device))
        zero = torch.zeros(1, dtype=torch.int32, device=device)
        self.register_buffer("input_zero_point", zero)
        self.register_buffer("is_observed", torch.zeros(1, dtype=torch.int64, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs; in training, the range follows the inputs.

        Raises:
            ConfigError: several ranks train, each of which would find ranges of its own.
        """
        if self.training:
            _check_alone()
            self.is_observed.fill_(1)
        observes = torch.full_like(self.is_observed, int(self.training))
        rounded = torch.fused_moving_avg_obs_fake_quant(
            x.float(), observes, self.is_observed, self.input_min, self.input_max,
            self.input_scale, self.input_zero_point, AVERAGING, 0, MAX_CODE, -1,
            per_row_fake_quant=False, symmetric_quant=self.is_symmetric,
        )  # fmt: skip
        scale = weight_scale(self.weight)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(
            self.weight.float(), scale, zero, 0, -LIMIT, LIMIT
        )
        return self.operation(rounded, weight, self.bias)

    def to_plain(self) -> nn.Module:
        """Return the float layer, with the weights as they are."""
        layer = self._plain[0]
        layer.weight, layer.bias = self.weight, self.bias  # pyright: ignore[reportAttributeAccessIssue]
        return layer

    def table(self) -> dict:
        """Return what `models.quantized` needs to make the quantised layer.

        Raises:
            ConfigError: it was never trained.
        """
        if not int(self.is_observed):
            raise ConfigError(
                "the ranges of the inputs are not known: the model was not trained yet",
                fix="train it, or quantise the model as it was before",
            )
        return {
            "scheme": "int8_static",
            "input_scale": float(self.input_scale),
            "input_zero_point": int(self.input_zero_point),
        }


def apply_fake_quantization(module: nn.Module, change: dict) -> None:
    """Replace layers by such that are rounded, in place.

    Raises:
        ValueError: a layer cannot be quantised.
    """
    for name in change["layers"]:
        layer = module.get_submodule(name)
        if (reason := why_not(layer, "int8_static")) is not None:
            raise ValueError(f"{name}: {reason}")
        module.set_submodule(name, QuantizationAwareLayer(layer, bool(change["is_symmetric"])))  # pyright: ignore[reportArgumentType]


def is_aware(module: nn.Module) -> bool:
    """Return whether a module has such layers."""
    return any(isinstance(part, QuantizationAwareLayer) for part in module.modules())


def _check_alone() -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if (count := torch.distributed.get_world_size()) > 1:
        raise ConfigError(
            f"quantisation-aware training on {count} ranks: each would find ranges of its own",
            fix="train in one process: a fine-tuning takes few steps",
        )
