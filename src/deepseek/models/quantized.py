"""Layers with weights of 8 or 16 bits, in the place of linears, convolutions and embeddings.

```
scheme             weights           inputs                                 computed in
fp16, bf16         16 bits           as they come, rounded to 16 bits       16 bits
int8_weight_only   int8              as they come                           dtype of the inputs
int8_dynamic       int8              int8, a scale for each row             integers (linears)
int8_static        int8              uint8, scale and zero point known      integers, once compiled
```
int8 weights have a scale for each output channel, and no zero point. An input of `int8_static` is
`scale * (code - zero_point)`; the layer asks for it with the operators that Inductor, ONNX and
OpenVINO know, so that in eager mode it is simulated and a compiler finds the integer kernel.

The change `quantised` of a model file holds `layers`: name -> `scheme` and, for `int8_static`,
`input_scale` and `input_zero_point`. Nothing here is trained: `models.quantization_aware` is.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCHEMES = ("fp16", "bf16", "int8_weight_only", "int8_dynamic", "int8_static")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LIMIT = 127
"""Of a symmetric code: -128 is left out, so that a weight and its negative are equally far."""
MAX_CODE = 255
_CONVOLUTIONS: dict[type, Callable] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d,
}  # fmt: skip
Product = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
CANDIDATES = (nn.Linear, *_CONVOLUTIONS, nn.Embedding)


def is_quantised(changes: Iterable[Mapping]) -> bool:
    """Return whether an engine with these changes has layers of fewer bits."""
    return any(change["kind"] == "quantised" for change in changes)


def schemes_of(changes: Iterable[Mapping]) -> set[str]:
    """Return the schemes of the layers of an engine with these changes."""
    tables = [change["layers"] for change in changes if change["kind"] == "quantised"]
    return {layer["scheme"] for table in tables for layer in table.values()}


def why_not(layer: nn.Module, scheme: str) -> str | None:
    """Return why a layer stays in float under a scheme, or `None` where it need not."""
    kind = type(layer).__name__
    if type(layer) not in CANDIDATES:
        return f"a {kind} may do more than what it is derived from"
    if isinstance(layer, nn.Embedding):
        if scheme in ("int8_dynamic", "int8_static"):
            return "an embedding multiplies nothing"
        return None if layer.max_norm is None else "max_norm changes its weights"
    if not isinstance(layer, nn.Linear):
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"padding_mode={layer.padding_mode}"
        if scheme == "int8_dynamic":
            return "no kernel convolves integers whose scale is found on the way"
    return None


def make_layer(layer: nn.Module, table: Mapping) -> nn.Module:
    """Return the quantised layer of a layer, which stays as it is.

    Args:
        layer: one of `CANDIDATES`, possibly on the meta device.
        table: `scheme`, and for `int8_static` `input_scale` and `input_zero_point`.

    Raises:
        ValueError: the layer cannot be quantised by this scheme, or the table makes no sense.
    """
    scheme = table["scheme"]
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}")
    if (reason := why_not(layer, scheme)) is not None:
        raise ValueError(reason)
    with torch.no_grad():
        if isinstance(layer, nn.Embedding):
            return QuantizedEmbedding(layer, scheme)
        layer = cast(Product, layer)  # what `why_not` lets through
        if scheme in DTYPES:
            return HalfLayer(layer, DTYPES[scheme])
        if scheme == "int8_weight_only":
            return WeightOnlyLayer(layer)
        if scheme == "int8_dynamic":
            return DynamicLinear(layer)
        return StaticLayer(layer, table["input_scale"], table["input_zero_point"])


def apply_quantization(module: nn.Module, change: dict) -> None:
    """Replace the layers that were quantised, in place.

    Raises:
        ValueError: a layer cannot be what the change says.
    """
    for name, table in change["layers"].items():
        layer = module.get_submodule(name)
        try:
            module.set_submodule(name, make_layer(layer, table))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes and the scale of each output channel, float32 (C,)."""
    scale = weight_scale(weight)
    codes = (weight.float() / _over_channels(scale, weight.ndim)).round()
    return codes.clamp(-LIMIT, LIMIT).to(torch.int8), scale


def weight_scale(weight: Tensor) -> Tensor:
    """Return max|w| / 127 of each output channel, float32 (C,)."""
    largest = weight.detach().float().flatten(1).abs().amax(1)
    return largest.clamp(min=torch.finfo(torch.float32).tiny * LIMIT) / LIMIT


class QuantizedLayer(nn.Module):
    """Base: a weight that is not trained."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.weight = _constant(weight)
        self.described = layer.extra_repr()

    def extra_repr(self) -> str:
        """Return what the layer was, and the dtype of its weights."""
        return f"{self.described}, {self.weight.dtype}"


class HalfLayer(QuantizedLayer):
    """A linear or convolution in 16 bits; its outputs have the dtype of its inputs."""

    def __init__(self, layer: Product, dtype: torch.dtype) -> None:
        super().__init__(layer, layer.weight.to(dtype))
        self.bias = None if layer.bias is None else _constant(layer.bias.to(dtype))
        self.operation = operation_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.operation(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class Int8Layer(QuantizedLayer):
    """Base of those with int8 weights (C, ...) and a scale for each output channel (C,)."""

    def __init__(self, layer: Product) -> None:
        codes, scale = quantize_weight(layer.weight)
        super().__init__(layer, codes)
        self.weight_scale = _constant(scale)
        self.bias = None if layer.bias is None else _constant(layer.bias.float())
        self.operation = operation_of(layer)


class WeightOnlyLayer(Int8Layer):
    """A linear or convolution whose weights alone are int8."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs: the scale is multiplied in after the product."""
        outputs = self.operation(x, self.weight.to(x.dtype), None)
        is_linear = self.operation is F.linear
        scale = self._spread(self.weight_scale, x, is_linear)
        outputs = outputs * scale
        return outputs if self.bias is None else outputs + self._spread(self.bias, x, is_linear)

    def _spread(self, values: Tensor, x: Tensor, is_linear: bool) -> Tensor:
        values = values.to(x.dtype)
        return values if is_linear else _over_channels(values, self.weight.ndim - 1)


class DynamicLinear(Int8Layer):
    """A linear in integers: each row of its inputs has the scale max|x| / 127."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs: exact sums of integers, scaled."""
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = (rows.abs().amax(-1, keepdim=True) / LIMIT).clamp(min=1e-12)
        codes = (rows / scale).round().to(torch.int8)
        outputs = _multiply(codes, self.weight) * scale * self.weight_scale
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*x.shape[:-1], -1).to(x.dtype)


class StaticLayer(Int8Layer):
    """A linear or convolution of uint8 inputs and int8 weights.

    Args:
        layer: the float layer.
        input_scale: > 0.
        input_zero_point: code of zero, 0 to 255.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(self, layer: Product, input_scale: float, input_zero_point: int) -> None:
        super().__init__(layer)
        # registers torch.ops.quantized_decomposed; a second of imports that others need not pay
        importlib.import_module("torch.ao.quantization.fx._decomposed")
        if not isinstance(input_scale, float) or not 0 < input_scale < float("inf"):
            raise ValueError(f"input_scale={input_scale} is no positive number")
        if not isinstance(input_zero_point, int) or not 0 <= input_zero_point <= MAX_CODE:
            raise ValueError(f"input_zero_point={input_zero_point} is not in 0 to {MAX_CODE}")
        self.input_scale, self.input_zero_point = input_scale, input_zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        quantized = torch.ops.quantized_decomposed
        code = (self.input_scale, self.input_zero_point, 0, MAX_CODE, torch.uint8)
        x = quantized.quantize_per_tensor(x.float(), *code)
        x = quantized.dequantize_per_tensor(x, *code)
        weight = quantized.dequantize_per_channel(
            self.weight, self.weight_scale, None, 0, -LIMIT, LIMIT, torch.int8
        )
        return self.operation(x, weight, self.bias)

    def extra_repr(self) -> str:
        """Return what the layer was, and the code of its inputs."""
        return f"{super().extra_repr()}, {self.input_scale:.3g} * (code - {self.input_zero_point})"


class QuantizedEmbedding(QuantizedLayer):
    """An embedding with rows in 16 bits, or in int8 with a scale for each row; float32 outputs."""

    def __init__(self, layer: nn.Embedding, scheme: str) -> None:
        self.weight_scale: Tensor | None
        if scheme in DTYPES:
            super().__init__(layer, layer.weight.to(DTYPES[scheme]))
            self.weight_scale = None
        else:
            codes, scale = quantize_weight(layer.weight)
            super().__init__(layer, codes)
            self.weight_scale = _constant(scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a vector for each token, (..., D)."""
        rows = F.embedding(tokens, self.weight).float()
        return rows if self.weight_scale is None else rows * self.weight_scale[tokens][..., None]


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=False)


def operation_of(layer: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return what a linear or convolution computes, of inputs, weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear
    settings = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    return partial(_CONVOLUTIONS[type(layer)], **settings)


def _over_channels(values: Tensor, ndim: int) -> Tensor:
    """Return (C,) as (C, 1, ...) with `ndim` dims."""
    return values.view(-1, *[1] * (ndim - 1))


def _multiply(codes: Tensor, weight: Tensor) -> Tensor:
    """Return the product of int8 (N, K) and (C, K), float32 (N, C)."""
    has_kernel = codes.device.type == "cpu" or (
        codes.is_cuda and codes.shape[0] > 16 and codes.shape[1] % 8 == 0 and len(weight) % 8 == 0
    )
    if has_kernel:
        return torch._int_mm(codes, weight.t()).float()  # pyright: ignore[reportPrivateImportUsage]
    return codes.float() @ weight.t().float()
