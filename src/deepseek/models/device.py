"""Which device a model computes on."""

import os

import torch

from deepseek.errors import ConfigError


def resolve_device(name: str, is_distributed: bool = False) -> torch.device:
    """Return the device called `name`; `auto` is the first accelerator, else the CPU.

    A GPU is returned with its number, and is from now on the one that torch means where none is
    named: what waits for the device, pins memory or draws numbers would else turn to the first.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        is_distributed: each process of a host takes the accelerator of its own number.

    Raises:
        ConfigError: there is no such device here, or several processes would take one GPU.
    """
    if is_distributed and name in ("auto", "cuda") and torch.cuda.is_available():
        return _own_cuda_device()
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None else str(found)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={name!r} cannot be used here: {str(error).splitlines()[0]}",
            fix="use device=auto or cpu, or mend the driver",
        ) from error
    if device.type != "cuda":
        return device
    if is_distributed:
        raise ConfigError(
            f"device={name!r} with several processes, all of which would take that GPU",
            fix="set device=cuda: each process takes the GPU of its own number",
        )
    return _enter(torch.cuda.current_device() if device.index is None else device.index)


def _own_cuda_device() -> torch.device:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {number} has no GPU of its own: there are {torch.cuda.device_count()}",
            fix="start as many processes as there are GPUs (deepseek launch --nproc auto), or set"
            " device=cpu",
        )
    return _enter(number)


def _enter(number: int) -> torch.device:
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
