"""A model as a program of torch.export: a file that runs without the code of the model.

Exports can be wrong without a word: a size that was fixed, a constant in float64. So a file is read
back and compared with the model, at two batch sizes, before it takes its name.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError

CHECKED_BATCH_SIZES = (1, 3)
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference, relative to the largest output, by the dtype of the outputs."""


def export_program(module: nn.Module, path: str | Path, inputs: Tensor) -> float:
    """Write a module, in the mode `eval`, as `.pt2` for any batch size; in one atomic step.

    Args:
        module: from one tensor to one tensor.
        path: of the file.
        inputs: a batch (B, ...); all sizes but B are fixed.

    Returns:
        The largest difference from the module that was seen, relative to the largest output.

    Raises:
        ConfigError: the module cannot be exported.
        CheckpointError: the file computes something else than the module.
    """
    path = Path(path)
    if inputs.ndim < 1 or len(inputs) == 0:
        raise ConfigError(
            f"inputs of shape {tuple(inputs.shape)} are no batch", fix="give a batch (B, ...)"
        )
    program = _export(module, _repeat(inputs, 2))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.pt2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own
            torch.export.save(program, temporary)
            loaded = torch.export.load(temporary)
        _check_dtypes(module, loaded, path)
        error = max(
            _compare(module, loaded.module(), _repeat(inputs, size), path)
            for size in CHECKED_BATCH_SIZES
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return error


def _repeat(inputs: Tensor, batch_size: int) -> Tensor:
    """Return a batch of another size: rows in turn, each a little different."""
    rows = inputs[torch.arange(batch_size, device=inputs.device) % len(inputs)]
    if not rows.is_floating_point():
        return rows
    factors = torch.linspace(1, 0.5, batch_size, device=rows.device, dtype=rows.dtype)
    return rows * factors.view(-1, *[1] * (rows.ndim - 1))


def _export(module: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own
            return torch.export.export(module, (inputs,), dynamic_shapes=shapes)
    except Exception as error:  # whatever tracing a user's Python raises
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{type(module).__name__} cannot be exported for any batch size:"
            f" {reason[0] if reason else repr(error)}",
            fix="let its forward not depend on the values of tensors or on the batch size",
        ) from error


def _check_dtypes(module: nn.Module, program: torch.export.ExportedProgram, path: Path) -> None:
    known = {tensor.dtype for tensor in module.state_dict().values()}
    if torch.float64 in known:
        return
    held = {**program.state_dict, **program.constants}
    wide = [n for n, t in held.items() if isinstance(t, Tensor) and t.dtype is torch.float64]
    if wide:
        raise CheckpointError(
            f"{path}: the export holds {', '.join(wide[:4])} in float64, the model does not",
            fix="make the constants of the model float32",
        )


def _compare(module: nn.Module, exported: nn.Module, inputs: Tensor, path: Path) -> float:
    with torch.no_grad():
        want, found = module(inputs), exported(inputs)
    if want.shape != found.shape or want.dtype != found.dtype:
        raise _other(
            path,
            len(inputs),
            f"{found.dtype} {tuple(found.shape)}, the model {want.dtype} {tuple(want.shape)}",
        )
    size = float(want.abs().max()) or 1.0
    error = float((want - found).abs().max()) / size
    if not error <= TOLERANCES.get(want.dtype, 0.0):  # NaN is wrong as well
        raise _other(path, len(inputs), f"numbers that differ by {error:.1e} of the largest")
    return error


def _other(path: Path, batch_size: int, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the export gives, for {batch_size} samples, {what}",
        fix="report the model: its export is not what it computes",
    )
