"""Steps of one second and less: dynamic against static graph, and fp32 against bf16, in one run.

A step is a whole one: forward, backward, clipping, fused AdamW, on one batch that stays. Modes are
interleaved; what is reported is the median over repetitions of the mean time of a step, and ratios
are medians of the ratios within a repetition. Compilation is not part of a step; its seconds are
reported beside it.
"""

import argparse
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch.utils.data import Dataset, TensorDataset

from deepseek.datasets import TokenDataset
from deepseek.models import ModelEngine
from deepseek.trainer import Trainer
from deepseek.trainer.device import cpu_threads
from deepseek.trainer.step import TrainStep
from measure import markdown_table, report, silenced, spread

MODES = (("fp32", "dynamic"), ("fp32", "static"), ("bf16", "dynamic"), ("bf16", "static"))


def make_images(size: int) -> Dataset:
    """Return one batch's worth of pictures."""
    return TensorDataset(torch.randn(64, 3, size, size), torch.arange(64) % 10)


def make_text(length: int) -> Dataset:
    """Return random tokens of a vocabulary of 4096."""
    tokens = torch.randint(0, 4096, (64 * length + 1,))
    return TokenDataset(tokens, length, [str(i) for i in range(4096)])


MODELS: dict[str, tuple[Callable[[], ModelEngine], Callable[[], Dataset], int]] = {
    "ViT-S/16, 224 pixels": (
        lambda: ModelEngine("vit_small_patch16_224"), lambda: make_images(224), 8,
    ),
    "ResNet-50, 224 pixels": (lambda: ModelEngine("resnet50"), lambda: make_images(224), 8),
    "GPT, 6 layers of 384, 256 tokens": (
        lambda: ModelEngine("gpt", context_length=256, num_layers=6, dim=384, heads=6),
        lambda: make_text(256), 8,
    ),
}  # fmt: skip


class Mode:
    """A model ready to take steps in one mode."""

    def __init__(self, name: str, precision: str, graph: str, device: str, folder: str) -> None:
        make_model, make_data, batch_size = MODELS[name]
        torch.manual_seed(0)
        trainer = Trainer(
            make_model(), make_data(), batch_size=batch_size, max_steps=10_000, device=device,
            precision=precision, graph=graph, num_workers=0, run_dir=folder,
        )  # fmt: skip
        self.step: TrainStep = trainer.assembly.step
        self.threads = trainer.assembly.cpu_threads
        self.batch = next(iter(trainer.train_loader))
        trainer.model.train()
        self.count = 0
        began = perf_counter()
        self.take(2)
        self.warm_s = perf_counter() - began

    def take(self, steps: int) -> float:
        """Take steps and return the mean seconds of one."""
        with cpu_threads(self.threads):
            began = perf_counter()
            for _ in range(steps):
                measured = self.step.measure(self.step.accumulate(self.batch))
                self.step.update(self.batch, measured, self.count)
                self.count += 1
            if self.step.device.type == "cuda":
                torch.cuda.synchronize()
            return (perf_counter() - began) / steps


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """Return a record per mode of one model."""
    with silenced(), TemporaryDirectory() as folder:
        modes = {mode: Mode(name, *mode, args.device, f"{folder}/{mode}") for mode in MODES}
        times: dict[tuple[str, str], list[float]] = {mode: [] for mode in MODES}
        for _ in range(args.repeats):
            for mode, runner in modes.items():
                times[mode].append(runner.take(args.steps))
    records = []
    for precision, graph in MODES:
        middle, half = spread([1e3 * value for value in times[precision, graph]])
        records.append(
            {
                "model": name,
                "precision": precision,
                "graph": graph,
                "step_ms": middle,
                "spread_ms": half,
                "to_dynamic": _ratio(times[precision, "dynamic"], times[precision, graph]),
                "to_fp32": _ratio(times["fp32", graph], times[precision, graph]),
                "compile_s": modes[precision, graph].step.graph.compile_s,
            }
        )
    return records


def _ratio(slower: list[float], faster: list[float]) -> float:
    return median(a / b for a, b in zip(slower, faster, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps of a repetition")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    records = [record for name in MODELS for record in measure(name, args)]
    header = ("model", "precision", "graph", "step, ms", "x dynamic", "x fp32", "compiled in, s")
    rows = [
        (
            r["model"], r["precision"], r["graph"], f"{r['step_ms']:.1f} ± {r['spread_ms']:.1f}",
            f"{r['to_dynamic']:.2f}", f"{r['to_fp32']:.2f}", f"{r['compile_s']:.0f}",
        )
        for r in records
    ]  # fmt: skip
    notes = f"Median of {args.repeats} repetitions of {args.steps} steps, batches of 8."
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
