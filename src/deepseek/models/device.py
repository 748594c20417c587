"""Which device a model computes on."""

import os

import torch

from deepseek.errors import ConfigError


def resolve_device(name: str, is_distributed: bool = False) -> torch.device:
    """Return the device called `name`; `auto` is the first accelerator, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        is_distributed: each process of a host takes the accelerator of its own number.

    Raises:
        ConfigError: there is no such device here.
    """
    if is_distributed and name in ("auto", "cuda") and torch.cuda.is_available():
        return _own_cuda_device()
    if name == "auto":
        if torch.accelerator.is_available():
            return torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name!r} cannot be used here: {str(error).splitlines()[0]}",
            fix="use device=auto or cpu, or mend the driver",
        ) from error
    return device


def _own_cuda_device() -> torch.device:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {number} has no GPU of its own: there are {torch.cuda.device_count()}",
            fix="start as many processes as there are GPUs (deepseek launch --nproc auto), or set"
            " device=cpu",
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device
