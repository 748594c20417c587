"""What may be done to the weights before a runtime gets them."""

from collections.abc import Sequence

from torch import Tensor

from deepseek.deploy.quantization.draft import fold_norms
from deepseek.deploy.quantization.quantize import Calibration, quantize
from deepseek.models import ModelEngine

METHODS = ("int8_static", "int8_dynamic", "int8_weight_only")
"""Schemes of `quantize` that are tried."""
_WITH_KERNELS = ("compiled", "aoti", "onnxruntime", "openvino")
"""Runtimes that compute in integers what a scheme marks as such; eager only simulates them."""


def prepares_for(method: str, runtime: str) -> bool:
    """Return whether a runtime gains from what a scheme makes of a model."""
    if method == "int8_weight_only":  # a smaller file, computed as before
        return runtime in ("eager", "compiled")
    return runtime in _WITH_KERNELS


def prepare(engine: ModelEngine, method: str, calibration: Sequence[Tensor]) -> ModelEngine:
    """Return an engine with its batch norms folded, or as a scheme makes it.

    Args:
        engine: with its data spec; left as it is.
        method: of `METHODS`, or empty.
        calibration: batches as the engine takes them.
    """
    if not method:
        return fold_norms(engine, calibration[0])[0]
    return quantize(engine, method, calibration=Calibration(data=list(calibration))).model
