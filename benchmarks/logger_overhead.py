"""What loggers cost a run when they work, and when nobody can be reached.

Steps of some 50 ms, a record every 10 steps. The time is that of steps 30 to the last; beside it
the time that the run needs to end, after its last step. Repetitions are interleaved; the overhead
is the median of the ratios within a repetition.
"""

import argparse
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import Callback, Trainer
from measure import markdown_table, report, silenced, spread

WARM_STEPS = 30  # packages are imported meanwhile
WIDTH = 1712
WRITER = "tensorboard.summary.writer.event_file_writer.EventFileWriter"
MODES = {
    "metrics.jsonl alone": (),
    "TensorBoard": ("tensorboard",),
    "TensorBoard, folder not writable": ("tensorboard",),
    "W&B, unreachable": ("wandb",),
}
UNREACHABLE = {"WANDB_BASE_URL": "http://192.0.2.1", "WANDB_API_KEY": "0" * 40}  # RFC 5737


class Clock(Callback):
    """Takes the time between two steps."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.began = self.ended = 0.0

    def on_step_end(self, trainer, result):
        """Look at the clock."""
        if trainer.step == WARM_STEPS:
            self.began = perf_counter()
        if trainer.step == self.last:
            self.ended = perf_counter()


def run(mode: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return (seconds per step, seconds from the last step to the end)."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 8))
    num_samples = 128 * (args.steps + WARM_STEPS)
    data = TensorDataset(
        torch.randn(1024, WIDTH).repeat(num_samples // 1024 + 1, 1)[:num_samples],
        torch.arange(num_samples) % 8,
    )
    clock = Clock(args.steps + WARM_STEPS)
    is_refused = mode.endswith("not writable")
    refused = (
        patch(WRITER, side_effect=PermissionError("Permission denied"))
        if is_refused
        else patch.dict({})
    )
    with silenced(), TemporaryDirectory() as folder, refused, patch.dict(os.environ, UNREACHABLE):
        trainer = Trainer(
            net, data, batch_size=128, epochs=1, precision="fp32", checkpoint_every=None,
            num_workers=0, log_every=10, loggers=("jsonl", *MODES[mode]), wandb_mode="online",
            callbacks=[clock], run_dir=f"{folder}/run",
        )  # fmt: skip
        trainer.fit()
        num_lines = Path(f"{folder}/run/metrics.jsonl").read_text().count('"train"')
    if num_lines != (args.steps + WARM_STEPS) // 10:
        raise RuntimeError(f"{mode}: metrics.jsonl has {num_lines} records")
    return (clock.ended - clock.began) / args.steps, perf_counter() - clock.ended


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for _ in range(args.repeats):
        for mode in MODES:
            times[mode].append(run(mode, args))
    plain = [step for step, _ in times["metrics.jsonl alone"]]
    records = []
    for mode, values in times.items():
        middle, half = spread([1e3 * step for step, _ in values])
        overhead = median(step / base for (step, _), base in zip(values, plain, strict=True)) - 1
        records.append(
            {"loggers": mode, "step_ms": middle, "spread_ms": half, "overhead": overhead,
             "end_s": median(end for _, end in values)}
        )  # fmt: skip
    rows = [
        (r["loggers"], f"{r['step_ms']:.3f} ± {r['spread_ms']:.3f}", f"{r['overhead']:+.1%}",
         f"{r['end_s']:.1f}")
        for r in records
    ]  # fmt: skip
    notes = (
        f"A record every 10 steps; median of {args.repeats} repetitions of {args.steps} steps. No"
        " record is missing from metrics.jsonl in any of them."
    )
    header = ("loggers", "step, ms", "overhead", "to the end, s")
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
