"""Which device a run computes on."""

import torch

from deepseek.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first accelerator, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
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
