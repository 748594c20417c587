"""Training of three standard models with our defaults, on data in memory, for some seconds each.

ResNet (He et al. 2015, arXiv 1512.03385), GPT-2 (Radford et al. 2019) and ViT-tiny (Touvron et al.
2020, arXiv 2012.12877). FLOPs are counted on shapes, the backward pass as twice the forward pass.
"""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from deepseek.bench.result import TrainingRate
from deepseek.datasets import TokenDataset
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.step_values import StepResult

WARM_STEPS = 2
NUM_CLASSES = 100
NEVER = 10**9
NUM_BATCHES = 16
"""Of an epoch: different batches that are in memory."""


@dataclass(frozen=True)
class StandardModel:
    """A model, its data and its batch.

    Attributes:
        name: as printed, with its sizes.
        batch: as printed.
        batch_size: samples of a step.
        make_model: builds it.
        make_data: data of so many samples.
    """

    name: str
    batch: str
    batch_size: int
    make_model: Callable[[], ModelEngine]
    make_data: Callable[[int], Dataset]


def standard_models(device_type: str) -> tuple[StandardModel, ...]:
    """Return ResNet, GPT and ViT, in sizes that a step takes about a second or less with.

    Args:
        device_type: `cpu`, or that of an accelerator.
    """
    if device_type == "cpu":
        return (
            _pictures("resnet18", "ResNet-18", size=64, batch_size=32),
            _text(num_layers=2, length=128, vocab_size=8192, batch_size=4),
            _pictures("vit_tiny_patch16_224", "ViT-tiny", size=224, batch_size=8),
        )
    return (
        _pictures("resnet50", "ResNet-50", size=224, batch_size=128),
        _text(num_layers=12, length=1024, vocab_size=50_304, batch_size=16),
        _pictures("vit_tiny_patch16_224", "ViT-tiny", size=224, batch_size=256),
    )


def _pictures(architecture: str, title: str, *, size: int, batch_size: int) -> StandardModel:
    def make_data(count: int) -> TensorDataset:
        return TensorDataset(torch.randn(count, 3, size, size), torch.arange(count) % NUM_CLASSES)

    return StandardModel(
        f"{title}, {size} pixels",
        f"{batch_size} images",
        batch_size,
        lambda: ModelEngine(architecture),
        make_data,
    )


def _text(*, num_layers: int, length: int, vocab_size: int, batch_size: int) -> StandardModel:
    def make_data(count: int) -> TokenDataset:
        tokens = torch.arange(count * length + 1) * 7919 % vocab_size
        return TokenDataset(tokens, length, [str(at) for at in range(vocab_size)])

    sizes: dict[str, Any] = {
        "num_layers": num_layers, "dim": 768, "heads": 12, "context_length": length,
    }  # fmt: skip
    return StandardModel(
        f"GPT-2 small, {num_layers} of 12 layers" if num_layers < 12 else "GPT-2 small",
        f"{batch_size} x {length} tokens",
        batch_size,
        lambda: ModelEngine("gpt", **sizes),
        make_data,
    )


class _Window(Callback):
    """Has the steps after the first few recorded as one window, and ends the run with it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = 0.0
        self.num_steps = 0

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._began = perf_counter()

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        # The recorder waits for the device where it writes a line, and begins anew behind it.
        if trainer.step == WARM_STEPS:
            trainer.recorder.log_step(trainer.step, result)
        if trainer.step <= WARM_STEPS or perf_counter() - self._began < self._seconds:
            return
        self.num_steps = trainer.step - WARM_STEPS
        trainer.recorder.log_step(trainer.step, result)
        trainer.request_stop("the time of the bench is over")


def measure_training(
    standard: StandardModel,
    seconds: float,
    folder: Path,
    matmul_tflops: Callable[[str], float | None],
    batch_size: int | None = None,
    device: str = "auto",
) -> TrainingRate:
    """Train a standard model for about `seconds`, every setting at its default.

    But checkpoints, TensorBoard and records of single steps are off. At least three steps are
    taken.

    Args:
        standard: the model.
        seconds: from the beginning of the run on.
        folder: for the run.
        matmul_tflops: the rate of matrix products in a precision.
        batch_size: another than the model's.
        device: as a trainer takes it.
    """
    size = batch_size or standard.batch_size
    window = _Window(seconds)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            standard.make_model(), standard.make_data(size * NUM_BATCHES), run_dir=folder,
            batch_size=size, epochs=10**6, callbacks=[window], checkpoint_every=None,
            loggers=("jsonl",), log_every=NEVER, device=device,
        )  # fmt: skip
        trainer.fit()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record = [entry for entry in map(json.loads, lines) if entry["kind"] == "train"][-1]
    samples_per_s = record["samples_per_s"]
    estimate = trainer.assembly.estimate
    tflops = 3 * estimate.forward_flops * samples_per_s / 1e12 if estimate else float("nan")
    precision = trainer.assembly.precision.name
    peak = matmul_tflops(precision)
    return TrainingRate(
        model=standard.name,
        batch=standard.batch if batch_size is None else f"{size} samples",
        precision=precision,
        step_s=size / samples_per_s,
        samples_per_s=samples_per_s,
        tflops=tflops,
        matmul_share=tflops / peak if peak else None,
        data_wait_share=record["data_wait_share"],
        num_steps=window.num_steps,
    )
