"""Probabilities that come true: one number that the logits of a classifier are divided by.

Paper: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2.
The number minimises the cross-entropy on data that were not trained on; classes stay as they are.
It goes into the head of the model, so that file, export and service know nothing of it.

Shapes: N samples, K classes.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from deepseek.deploy.one_task import choose_task, finds_classes, samples_of_task
from deepseek.deploy.report.calibration import calibrate as bin_confidence
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, MultiHead
from deepseek.trainer.evaluation import evaluate_samples

LOW, HIGH = 1e-2, 1e2
_HALVINGS = 60


@dataclass(frozen=True)
class Temperature:
    """What calibration has found; errors are of the half that the number was not fitted on.

    Attributes:
        value: what logits are divided by; above 1 the model was too sure.
        ece_before, ece_after: expected calibration error, 0..1.
        loss_before, loss_after: cross-entropy, nats.
        num_samples: those of all.
    """

    value: float
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float
    num_samples: int

    def describe(self) -> str:
        """Return one line."""
        return (
            f"temperature {self.value:.3f} from {self.num_samples:,} samples; on the half it was"
            f" not fitted on: calibration error {self.ece_before:.2%} -> {self.ece_after:.2%},"
            f" loss {self.loss_before:.4f} -> {self.loss_after:.4f}"
        )


def fit_temperature(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature of least cross-entropy, 0.01 to 100.

    Args:
        probs: of the classes, (N, K).
        targets: classes, (N,).
    """
    logits = np.log(np.clip(probs.astype(np.float64), 1e-30, None))
    own = logits[np.arange(len(targets)), targets]
    low, high = np.log(LOW), np.log(HIGH)  # of 1 / T, in which the loss is convex
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        scaled = _softmax(np.exp(middle) * logits)
        slope = ((scaled * logits).sum(1) - own).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def measure_temperature(probs: np.ndarray, targets: np.ndarray) -> Temperature:
    """Return the temperature of some predictions, and what it does for a half of them.

    Args:
        probs: of the classes, (N, K).
        targets: classes, (N,).

    Raises:
        ConfigError: there are fewer than 20 samples.
    """
    if len(targets) < 20:
        raise ConfigError(
            f"{len(targets)} samples are too few to calibrate on", fix="give 20 at least"
        )
    order = np.random.default_rng(0).permutation(len(targets))
    fitted, rest = order[::2], order[1::2]
    half = fit_temperature(probs[fitted], targets[fitted])
    before, after = probs[rest], scale_probs(probs[rest], half)
    return Temperature(
        fit_temperature(probs, targets),
        _error(before, targets[rest]),
        _error(after, targets[rest]),
        _loss(before, targets[rest]),
        _loss(after, targets[rest]),
        len(targets),
    )


def calibrate_model(
    engine: ModelEngine,
    data,
    *,
    task: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> tuple[ModelEngine, Temperature]:
    """Return a copy of a classifier whose probabilities are calibrated, and what was found.

    Args:
        engine: with a linear head.
        data: labelled samples that were not trained on.
        task: of a model of several tasks; `None`: the one that the data have labels of.
        batch_size: samples at a time.
        device: where they are computed.

    Raises:
        ConfigError: the model has no linear head, or the data no class for each sample.
    """
    if not isinstance(engine.module, MultiHead):
        _head_of(engine, None)  # before anything is computed
    samples = evaluate_samples(engine, data, batch_size, device=device).samples
    task = choose_task(engine, samples, task)
    head, found = _head_of(engine, task), samples_of_task(samples, task)
    if not finds_classes(found):
        raise ConfigError(
            "only a model that finds a class for each sample can be calibrated",
            fix="give a classifier",
        )
    temperature = measure_temperature(found["probs"].numpy(), found["targets"].numpy())
    calibrated = copy.deepcopy(engine)
    linear = calibrated.module.get_submodule(head)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.div_(temperature.value)
    return calibrated, temperature


def scale_probs(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities (N, K) as they are at a temperature."""
    return _softmax(np.log(np.clip(probs.astype(np.float64), 1e-30, None)) / temperature)


def _head_of(engine: ModelEngine, task: str | None) -> str:
    names = [name for name in engine.hints.head if name]
    if task is not None and isinstance(engine.module, MultiHead):
        names = [f"heads.{task}.linear"]
    head = names[-1] if names else ""
    part = engine.module.get_submodule(head) if head else None
    tied = isinstance(part, nn.Linear) and any(
        other is part.weight and name != f"{head}.weight"
        for name, other in engine.module.named_parameters(remove_duplicate=False)
    )
    if not isinstance(part, nn.Linear) or tied:
        raise ConfigError(
            f"{engine.architecture!r} has no linear head of its own that could be scaled",
            fix="divide its logits by the temperature: deepseek.deploy.temperature.fit_temperature",
        )
    return head


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def _error(probs: np.ndarray, targets: np.ndarray) -> float:
    return bin_confidence(probs.max(1), probs.argmax(1) == targets).ece


def _loss(probs: np.ndarray, targets: np.ndarray) -> float:
    own = probs[np.arange(len(targets)), targets]
    return float(-np.log(np.clip(own, 1e-30, None)).mean())
