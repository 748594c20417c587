"""Integer kernels of oneDNN for models that `quantize` returned, compiled by Inductor."""

import importlib.util
import platform

from deepseek.models import ModelEngine
from deepseek.models.quantized import is_quantised
from deepseek.registry import import_extra


def register_integer_kernels() -> bool:
    """Let Inductor replace quantised layers by oneDNN's kernels, from now on in this process.

    The patterns are torchao's. They need frozen weights: `torch._inductor.config.freezing` has to
    be on, and gradients off, when a compiled model is called; given as an option of `compile`,
    `freezing` comes too late for the weights, and compilation fails.

    Returns:
        Whether there are such kernels here: an x86 chip, and torchao.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not is_x86 or importlib.util.find_spec("torchao") is None:
        return False
    import_extra("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", "deploy")
    return True


def register_for(engine: ModelEngine) -> None:
    """Do so if the engine has quantised layers."""
    if is_quantised(engine.changes):
        register_integer_kernels()
