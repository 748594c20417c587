"""A converted model beside the original, on real inputs and more than one batch size.

Conversions can be wrong without a word: a batch size that was fixed, a constant of another dtype, a
bias of the wrong shape.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.5}
"""Largest difference of an output, relative to the largest; above it a conversion is wrong, and not
merely coarse: what a lower precision costs is measured on data."""


def compare_outputs(
    original: nn.Module, converted: nn.Module, inputs: Tensor, precision: str, path: Path
) -> float:
    """Return the largest difference, relative to the largest output, for all inputs and one.

    Args:
        original: in evaluation.
        converted: from inputs to float32 outputs.
        inputs: (B, ...), two samples or more.
        precision: of the conversion.
        path: named in errors.

    Raises:
        CheckpointError: outputs of another shape, or that differ by more than the precision says.
    """
    worst = 0.0
    for batch in (inputs, inputs[:1]):
        with torch.no_grad():
            want, found = original(batch).float(), converted(batch)
        if want.shape != found.shape:
            raise _other(path, len(batch), f"a {tuple(found.shape)}, the model {tuple(want.shape)}")
        error = float((want - found).abs().max()) / (float(want.abs().max()) or 1.0)
        if not error <= TOLERANCES[precision.partition("_")[0]]:  # NaN is wrong as well
            raise _other(path, len(batch), f"numbers that differ by {error:.1e} of the largest")
        worst = max(worst, error)
    return worst


def _other(path: Path, batch_size: int, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: for {batch_size} samples it computes {what}",
        fix="use another runtime or precision for this model",
    )
