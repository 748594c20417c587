"""What the mathematics runs in, and what weights are: fp32, unless the run wants bf16."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from deepseek.errors import ConfigError
from deepseek.trainer.fp8 import check_device

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # what is no matrix product of a linear
}
# Below this much work in a step, bf16 brings nothing on a CPU (measured on two cores of an EPYC: a
# ViT on 8-pixel images, 0.2 GFLOPs a step, 1,865 images/s in fp32 and 1,845 in bf16; ResNet-20 at
# 28 pixels, 18 GFLOPs, 547 and 742).
MIN_CPU_BF16_STEP_FLOPS = 2e9


@dataclass(frozen=True)
class Precision:
    """A compute dtype and why it was chosen."""

    name: str
    device_type: str
    reason: str

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products and convolutions."""
        return DTYPES[self.name]

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients are scaled so that they do not vanish in fp16."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager:
        """Return the context in which a forward pass runs."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.compute_dtype)


def chip_has_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def resolve_precision(
    name: str, device: torch.device, step_flops: float | None = None
) -> Precision:
    """Return the precision to train in.

    Args:
        name: `auto`, `fp32`, `bf16`, `fp16` or `fp8`.
        device: where the model computes.
        step_flops: work of one forward and backward pass, where known; a small step stays fp32 on
            a CPU.

    Raises:
        ConfigError: fp16 on a CPU, where it is slower than fp32 and loses range; fp8 on a chip that
            lacks it.
    """
    if name == "auto":
        if not chip_has_bf16(device):
            return Precision("fp32", device.type, f"{device.type} without bf16")
        is_small = step_flops is not None and step_flops < MIN_CPU_BF16_STEP_FLOPS
        if device.type == "cpu" and is_small:
            return Precision("fp32", device.type, "too small a step for bf16 to pay")
        return Precision("bf16", device.type, "the chip has it")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            "precision=fp16 on a CPU: slower than fp32, and loses range",
            fix="use precision=bf16, fp32 or auto",
        )
    if name == "fp8":
        check_device(device)
    return Precision(name, device.type, "as set")


def cast_weights(module: nn.Module, *, shards: bool) -> None:
    """Make the weights of a model bf16, in place; norms with running statistics stay fp32.

    Args:
        module: the model.
        shards: whether FSDP will divide them, which takes one format only.

    Raises:
        ConfigError: it will, and there are such norms.
    """
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]
    kept = {id(parameter) for norm in norms for parameter in norm.parameters()}
    if kept and shards:
        raise ConfigError(
            "param_dtype=bf16 with parallel=fsdp and batch norms, which stay fp32: torch divides"
            " weights of one format only",
            fix="set param_dtype=fp32, or copy the model instead: parallel=dp",
        )
    for parameter in module.parameters():
        if parameter.is_floating_point() and id(parameter) not in kept:
            parameter.data = parameter.data.bfloat16()
