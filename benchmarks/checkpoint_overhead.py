"""What saving costs a run: a state of 100 MiB written every 50 steps, against no saving at all.

Beside it what a hand-written loop does: `torch.save` of weights and optimizer over the last file,
with no care for a kill, a hash, or the disk having it.

The time is that of whole steps, from the end of step 10 to the end of the last, waits for the
writing thread included. Repetitions are interleaved; the overhead is the median of the ratios
within a repetition.
"""

import argparse
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import Callback, Trainer
from measure import markdown_table, report, silenced, spread

WARM_STEPS = 10
WIDTH = 1712  # three layers: 8.8 M weights, with Adam's state 100 MiB
MODES = ("no saving", "deepseek", "torch.save")


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


class TorchSave(Callback):
    """Saves as a hand-written loop does."""

    def __init__(self, path: str, every: int) -> None:
        self.path, self.every = path, every

    def on_step_end(self, trainer, result):
        """Save when it is due."""
        if trainer.step % self.every == 0:
            optimizer = trainer.assembly.step.optimizer
            state = {"model": trainer.model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, self.path)


def run(mode: str, args: argparse.Namespace) -> tuple[float, float]:
    """Return (seconds per step, MiB of a state)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8),
    )  # fmt: skip
    num_samples = args.batch_size * (args.steps + WARM_STEPS + 2)
    data = TensorDataset(torch.randn(1024, WIDTH).repeat(num_samples // 1024 + 1, 1)[:num_samples],
                         torch.arange(num_samples) % 8)  # fmt: skip
    last = WARM_STEPS + args.steps
    clock = Clock(last)
    with silenced(), TemporaryDirectory(dir=args.folder) as folder:
        callbacks = [TorchSave(f"{folder}/state.pt", args.every)] if mode == MODES[2] else []
        trainer = Trainer(
            net, data, batch_size=args.batch_size, epochs=1, max_steps=last + 1, precision="fp32",
            checkpoint_every=args.every if mode == MODES[1] else None, num_workers=0,
            loggers=("jsonl",), callbacks=[*callbacks, clock], run_dir=f"{folder}/run",
        )  # fmt: skip
        trainer.fit()
    state = sum(p.numel() for p in net.parameters()) * 12 / 2**20
    return (clock.ended - clock.began) / args.steps, state


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="steps between saves")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where checkpoints are written; the temporary folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    state = 0.0
    for _ in range(args.repeats):
        for mode in MODES:
            seconds, state = run(mode, args)
            times[mode].append(seconds)
    records = []
    for mode, values in times.items():
        middle, half = spread([1e3 * value for value in values])
        ratios = [a / b for a, b in zip(values, times[MODES[0]], strict=True)]
        records.append(
            {"mode": mode, "step_ms": middle, "spread_ms": half, "overhead": median(ratios) - 1}
        )
    rows = [
        (r["mode"], f"{r['step_ms']:.2f} ± {r['spread_ms']:.2f}", f"{r['overhead']:+.1%}")
        for r in records
    ]
    notes = (
        f"A state of {state:.0f} MiB every {args.every} steps; median of {args.repeats} repetitions"
        f" of {args.steps} steps."
    )
    report(args, records, markdown_table(("mode", "step, ms", "overhead"), rows), notes)


if __name__ == "__main__":
    main()
