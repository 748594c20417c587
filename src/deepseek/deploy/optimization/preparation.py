"""What may be done to the weights before a runtime gets them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepseek.deploy.optimization.material import label_names, read_rows
from deepseek.deploy.optimization.quality import is_share
from deepseek.deploy.pruning.prune import prune
from deepseek.deploy.pruning.semi_structured import PATTERN
from deepseek.deploy.quantization.draft import FUSED, fold_norms
from deepseek.deploy.quantization.judge import COSINE
from deepseek.deploy.quantization.quantize import Calibration, quantize
from deepseek.deploy.quantization.result import HURTS
from deepseek.deploy.samples import spec_of
from deepseek.deploy.shares import parse_share
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.whole_file import replacing

METHODS = ("int8_static", "int8_dynamic", "int8_weight_only")
"""Schemes of `quantize` that are tried."""
MIXED = "_mixed"
"""Ends a method that leaves the layers that hurt in float, until the tolerance holds."""
_WITH_KERNELS = ("compiled", "aoti", "onnxruntime", "openvino")
"""Runtimes that compute in integers what a scheme marks as such; eager only simulates them."""


@dataclass(frozen=True)
class Mixing:
    """How the layers are found that stay in float.

    Attributes:
        data: file of the samples that the metric is measured on.
        metric: of the task.
        tolerance: largest drop of the metric.
        known: JSON file of the layers, once they are found; other runtimes take the same.
    """

    data: Path
    metric: str
    tolerance: float
    known: Path


def prepares_for(method: str, runtime: str) -> bool:
    """Return whether a runtime gains from what a scheme makes of a model."""
    if method == "int8_weight_only":  # a smaller file, computed as before
        return runtime in ("eager", "compiled")
    if method == "int8_dynamic":  # ONNX has no product of integers with a scale for each row
        return runtime in ("compiled", "aoti")
    return runtime in _WITH_KERNELS


def cut_down(engine: ModelEngine, sparsity: str, inputs: Tensor) -> ModelEngine:
    """Return an engine with fewer weights, or with zeros in a pattern; nothing is trained.

    Args:
        engine: left as it is.
        sparsity: of a candidate; empty: the engine itself.
        inputs: (B, ...), two samples or more.

    Raises:
        ConfigError: nothing of it can be cut.
    """
    if not sparsity:
        return engine
    prepared = engine.prepare(inputs[:2])
    if sparsity == PATTERN:
        return prune(engine, pattern=PATTERN, inputs=prepared, latency=False).model
    return prune(engine, flops=parse_share(sparsity), inputs=prepared, latency=False).model


def prepare(
    engine: ModelEngine, method: str, calibration: Sequence[Tensor], mixing: Mixing
) -> tuple[ModelEngine, list[str], list[str]]:
    """Return an engine with fewer operators, or as a scheme makes it.

    Args:
        engine: with its data spec; left as it is.
        method: of `METHODS`, with or without `MIXED`; or empty.
        calibration: batches as the engine takes them.
        mixing: for `MIXED`.

    Returns:
        The engine, the layers that were left in float for the tolerance, and what was fused.

    Raises:
        ConfigError: the tolerance cannot be held, or is not lost by int8.
    """
    if not method:
        fused, notes = fold_norms(engine, calibration[0])
        return fused, [], [note for note in notes if note.endswith(FUSED)]
    scheme, own = method.removesuffix(MIXED), Calibration(data=list(calibration))
    if scheme == method:
        return quantize(engine, scheme, calibration=own).model, [], []
    if mixing.known.is_file():
        kept = json.loads(mixing.known.read_text(encoding="utf-8"))
        return quantize(engine, scheme, keep=kept, calibration=own).model, kept, []
    metric = mixing.metric if is_share(mixing.metric) else COSINE
    done = quantize(
        engine, scheme, _Measured(engine, mixing.data), calibration=own,
        # half of it: a runtime rounds otherwise than torch
        tolerance=mixing.tolerance / 2,
        metric=metric if label_names(mixing.data) else COSINE,
    )  # fmt: skip
    kept = [layer.name for layer in done.layers if layer.scheme is None and layer.why == HURTS]
    if not kept:
        raise ConfigError(
            f"{scheme} holds the tolerance in torch: what is lost is lost by the runtime",
            fix="use another runtime",
        )
    with replacing(mixing.known) as draft:
        draft.write_text(json.dumps(kept), encoding="utf-8")
    return done.model, kept, []


class _Measured(Dataset):
    """The samples of a file, as a data set of what the model was trained on."""

    def __init__(self, engine: ModelEngine, path: Path) -> None:
        names = ["inputs", *label_names(path)]
        self._fields = {name: read_rows(path, name) for name in names}
        self.spec = spec_of(engine)

    def __len__(self) -> int:
        return len(self._fields["inputs"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: torch.as_tensor(values[index]) for name, values in self._fields.items()}
