"""A converted model beside the original, on real inputs and more than one batch size.

Conversions can be wrong without a word: a batch size that was fixed, a constant of another dtype, a
bias of the wrong shape.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.models.joint_outputs import join_outputs

SMALLER = "smaller"
TOLERANCES = {
    "fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.5, "quantised": 0.05, SMALLER: math.inf,
}  # fmt: skip
"""Largest difference of an output, relative to the largest; above it a conversion is wrong, and not
merely coarse: what a lower precision costs is measured on data. A model that is `quantised` already
is compared with itself: numbers between two codes may fall to the other. One made `smaller` is
another model: data tell what it lost, and its outputs need only be numbers."""

Compute = Callable[[Tensor], Tensor | Mapping[str, Tensor]]


def compare_outputs(
    original: Compute,
    converted: Compute,
    inputs: Tensor,
    precision: str,
    path: Path,
    dims: Sequence[str] = ("batch",),
) -> float:
    """Return the largest difference, relative to the largest output, over batches of some sizes.

    Args:
        original: in evaluation.
        converted: from inputs to float32 outputs.
        inputs: (B, ...), two samples or more.
        precision: of the conversion.
        path: named in errors.
        dims: those that are open; with `length`, shorter samples are compared too.

    Raises:
        CheckpointError: outputs of another shape, or that differ by more than the precision says.
    """
    return max(
        compare_batch(original, converted, batch, precision, path)
        for batch in _batches(inputs, dims)
    )


def compare_batch(
    original: Compute,
    converted: Compute,
    batch: Tensor,
    precision: str,
    path: Path,
) -> float:
    """Return the largest difference for one batch (B, ...), as `compare_outputs` does for some."""
    shape = tuple(batch.shape)
    with torch.no_grad():
        want = join_outputs(original(batch)).float()
        try:
            found = join_outputs(converted(batch))
        except Exception as error:  # of any type: runtimes are foreign code
            raise _other(path, shape, f"nothing: {error}") from error
    if want.shape != found.shape:
        what = f"a {tuple(found.shape)}, the model {tuple(want.shape)}"
        raise _other(path, shape, what)
    error = float((want - found).abs().max()) / (float(want.abs().max()) or 1.0)
    # NaN is wrong, and infinity
    if not (error <= TOLERANCES[precision.partition("_")[0]] and math.isfinite(error)):
        raise _other(path, shape, f"numbers that differ by {error:.1e} of the largest")
    return error


def _batches(inputs: Tensor, dims: Sequence[str]) -> Iterator[Tensor]:
    """Return all inputs, one, an odd number, and samples of half the length."""
    yield inputs
    yield inputs[:1]
    yield torch.cat([inputs, inputs[:1]])[: 3 if len(inputs) != 3 else 5]
    if "length" in dims and inputs.shape[1] > 1:
        yield inputs[:, : inputs.shape[1] // 2]


def _other(path: Path, shape: tuple[int, ...], what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: for inputs of shape {shape} it computes {what}",
        fix="use another runtime or precision for this model",
    )
