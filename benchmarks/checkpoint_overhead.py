"""What saving costs a run: a state of 100 MiB written every 50 steps, against no saving at all.

Beside it what a hand-written loop does: `torch.save` of weights and optimizer over the last file,
with no care for a kill, a hash, or the disk having it.

Each save is judged by the steps beside it in the same run, since the machine's own speed drifts by
more than a save costs: what the ten steps from the save on take longer than as many of the steps
before and after them (their median), as a share of the time from one save to the next. "No saving"
has the same windows and no save: what it shows is noise. The first save is left out: it allocates
the memory of the copy, once in a run.
"""

import argparse
from itertools import pairwise
from statistics import mean, median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import Callback, Trainer
from measure import markdown_table, report, silenced

WINDOW = 10  # steps that a save can reach: it takes 0.1 to 0.5 s
WIDTH = 1712  # three layers: 8.8 M weights, with Adam's state 100 MiB
MODES = ("no saving", "deepseek", "torch.save")


class Clock(Callback):
    """Takes the time of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, trainer, result):
        """Look at the clock."""
        self.times.append(perf_counter())

    def overheads(self, every: int) -> list[float]:
        """Return what each save but the first adds, as a share of the time between two saves."""
        steps = [after - before for before, after in pairwise(self.times)]  # [0] is the second step
        found = []
        for save in range(2 * every, len(steps) - every // 2, every):
            begin = save - 1  # what follows `on_step_end` of step `save` falls into the next step
            window = steps[begin : begin + WINDOW]
            around = (
                steps[save - every // 2 : begin - 1] + steps[begin + WINDOW : save + every // 2]
            )
            found.append(sum(step - median(around) for step in window) / (every * median(around)))
        return found


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


def run(mode: str, args: argparse.Namespace) -> tuple[list[float], float]:
    """Return (what each save adds, as a share of the time between two; MiB of a state)."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8),
    )  # fmt: skip
    num_samples = args.batch_size * args.steps
    data = TensorDataset(torch.randn(1024, WIDTH).repeat(num_samples // 1024 + 1, 1)[:num_samples],
                         torch.arange(num_samples) % 8)  # fmt: skip
    clock = Clock()
    with silenced(), TemporaryDirectory(dir=args.folder) as folder:
        callbacks = [TorchSave(f"{folder}/state.pt", args.every)] if mode == MODES[2] else []
        trainer = Trainer(
            net, data, batch_size=args.batch_size, epochs=1, max_steps=args.steps, precision="fp32",
            checkpoint_every=args.every if mode == MODES[1] else None, num_workers=0,
            loggers=("jsonl",), callbacks=[clock, *callbacks], run_dir=f"{folder}/run",
        )  # fmt: skip
        trainer.fit()
    state = sum(p.numel() for p in net.parameters()) * 12 / 2**20
    return clock.overheads(args.every), state


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=520)
    parser.add_argument("--every", type=int, default=50, help="steps between saves")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where checkpoints are written; the temporary folder")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    state = 0.0
    for _ in range(args.repeats):
        for mode in MODES:
            overheads, state = run(mode, args)
            found[mode] += overheads
    records = [
        {"mode": mode, "overhead": mean(values), "quartiles": quantiles(values, n=4)}
        for mode, values in found.items()
    ]
    rows = [
        (r["mode"], f"{r['overhead']:+.1%}", " ".join(f"{q:+.1%}" for q in r["quartiles"]))
        for r in records
    ]
    notes = (
        f"A state of {state:.0f} MiB every {args.every} steps: what {len(found[MODES[0]])} saves"
        f" added, in {args.repeats} runs of each kind."
    )
    report(args, records, markdown_table(("mode", "mean", "quartiles"), rows), notes)


if __name__ == "__main__":
    main()
