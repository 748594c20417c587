"""Activations that a module writes out in several operators, computed by one kernel of torch.

```
x * sigmoid(x)                                           ->  SiLU
0.5 x (1 + erf(x / sqrt 2))                              ->  GELU
0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))        ->  GELU, tanh
x * relu6(x + 3) / 6                                     ->  Hardswish
x * tanh(softplus(x))                                    ->  Mish
```
What a module computes is compared, in float64 and on numbers far apart, with what the kernels do:
how it is written does not matter. Each operator that is gone is a pass over memory.
"""

import copy
import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek.deploy.written_attention import inputs_of

TOLERANCE = 1e-6
"""Largest difference, as a share of the output or absolute where that is below 1."""
RANGES = ((12.0, 2200), (350.0, 200))
"""Reach and number of points: near, and far for limits such as `clamp(max=20)`. No further: squares
of `exp(x)`, as in some forms of Mish, are finite in float64 up to 354."""
KERNELS: Mapping[str, nn.Module] = {
    "SiLU": nn.SiLU(), "GELU": nn.GELU(), "GELU tanh": nn.GELU("tanh"),
    "Hardswish": nn.Hardswish(), "Hardsigmoid": nn.Hardsigmoid(), "Mish": nn.Mish(),
    "ReLU": nn.ReLU(), "ReLU6": nn.ReLU6(), "ELU": nn.ELU(), "Softplus": nn.Softplus(),
    "LogSigmoid": nn.LogSigmoid(),
}  # fmt: skip


def fuse_written_activations(module: nn.Module, inputs: Tensor) -> tuple[tuple[str, str], ...]:
    """Put a kernel in the place of modules that compute the same in several operators.

    Args:
        module: in evaluation; changed in place.
        inputs: (B, ...), as it takes them.

    Returns:
        Names of the modules, each with that of its kernel.
    """
    found = {
        name: part
        for name, part in module.named_modules(remove_duplicate=False)
        if name and _may_be_one(part)
    }
    if not found:
        return ()
    given = inputs_of(module, found, inputs)
    kernels, fused = {}, {}
    for name, part in found.items():
        if any(name.startswith(f"{whole}.") for whole in fused):
            continue  # it went with the module that it is a part of
        args, kwargs = given.get(name, ((), {}))
        if len(args) != 1 or kwargs or not _is_floating(args[0]):
            continue
        if part not in kernels:
            kernels[part] = _kernel_of(part)
        if (kernel := kernels[part]) is not None:
            fused[name] = part
            module.set_submodule(name, copy.deepcopy(KERNELS[kernel]))
    try:
        with torch.inference_mode():
            module(inputs)
    except Exception:  # something else reads what such a module had
        for name, part in fused.items():
            module.set_submodule(name, part)
        return ()
    return tuple((name, str(kernels[part])) for name, part in fused.items())


def _may_be_one(part: nn.Module) -> bool:
    """Return whether a module holds no numbers, and takes one tensor."""
    if type(part).__module__.startswith("torch.nn"):
        return False
    if next(part.parameters(), None) is not None or next(part.buffers(), None) is not None:
        return False
    try:
        names = inspect.signature(part.forward).parameters
    except ValueError:
        return False
    return len(names) == 1


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _kernel_of(part: nn.Module) -> str | None:
    """Return the name of the kernel that computes what a module does in several operators."""
    parts = [torch.linspace(-reach, reach, n, dtype=torch.float64) for reach, n in RANGES]
    line = torch.cat(parts).view(2, -1)
    order = torch.randperm(line.numel(), generator=torch.Generator().manual_seed(0))
    mixed = line.flatten()[order].view(-1, 4)
    counter, given = _Counter(), (line.clone(), mixed.clone())  # which may be written into
    try:
        part = copy.deepcopy(part)  # which may keep something of what it is given
        with torch.inference_mode():
            other = part(given[1])
            with counter:
                found = part(given[0])
    except Exception:  # foreign code, on what it was not made for
        return None
    if counter.num_operators < 2 or not _is_floating(found) or not _is_floating(other):
        return None
    if found.shape != line.shape or other.shape != mixed.shape:
        return None
    if not torch.equal(found.flatten()[order], other.flatten()):  # not each number by itself
        return None
    for name, kernel in KERNELS.items():
        wanted = kernel(line)
        if bool(((found - wanted).abs() <= TOLERANCE * wanted.abs().clamp(min=1)).all()):
            return name
    return None


class _Counter(TorchDispatchMode):
    """Counts the operators that are computed."""

    num_operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_operators += 1
        return func(*args, **(kwargs or {}))
