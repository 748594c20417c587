"""fp8: the matrix products of linears in eight bits, forward and backward, on Hopper and newer.

Paper: Micikevicius et al. 2022, arXiv 2209.05433. torchao does it, with a scale per tensor that
follows its values; weights stay fp32, and a model file holds no trace of it. What is no linear, or
whose sizes 16 does not divide, runs in bf16.
"""

import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.registry import import_extra

MULTIPLE = 16
HOPPER = (9, 0)


def convert_linears(module: nn.Module, *, emulated: bool = False) -> int:
    """Replace the linears of a model, in place, by such that multiply in fp8.

    Args:
        module: the model; names and weights stay.
        emulated: compute in fp32 what fp8 would give, on any device: for tests, slow.

    Returns:
        The number of linears that were replaced.

    Raises:
        ConfigError: the model has no linear whose sizes allow it.
        MissingExtraError: torchao is not installed.
    """
    float8 = import_extra("torchao.float8", "fp8")
    names = [name for name, part in module.named_modules() if _fits(part)]
    if not names:
        raise ConfigError(
            f"precision=fp8, but no linear of the model has sizes that {MULTIPLE} divides",
            fix="use precision=bf16",
        )
    float8.convert_to_float8_training(
        module,
        # the gradient of a weight is a product over the rows, whose number 16 need not divide
        config=float8.Float8LinearConfig(emulate=emulated, pad_inner_dim=True),
        module_filter_fn=lambda part, name: _fits(part),
    )
    return len(names)


def check_device(device: torch.device) -> None:
    """Check that a device multiplies in fp8.

    Raises:
        ConfigError: it does not.
    """
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < HOPPER:
        name = device.type if found is None else f"compute capability {found[0]}.{found[1]}"
        raise ConfigError(
            f"precision=fp8 needs a Hopper GPU (compute capability 9.0) or newer, this is {name}",
            fix="use precision=bf16 or auto",
        )


def _fits(part: nn.Module) -> bool:
    return (
        type(part) is nn.Linear
        and part.in_features % MULTIPLE == 0
        and part.out_features % MULTIPLE == 0
    )
