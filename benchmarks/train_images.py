"""Images per second of a training step at 224 pixels: our defaults beside Lightning's and timm's.

- deepseek: `Trainer` with `ModelEngine(NAME)`, every setting at its default.
- Lightning: a timm model in a `LightningModule` with AdamW, every `Trainer` setting at its default.
- timm: loop and defaults of its `train.py` (SGD with momentum, label smoothing 0.1, no AMP).

Data are random and in memory, so only the step is compared. Contenders are interleaved; the time of
a step is taken from the end of one step to the end of the next, the first of each trial left out.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from measure import markdown_table, report, silenced, spread

MODELS = ("resnet50", "vit_small_patch16_224")
NUM_CLASSES = 1000
IMAGE_SIZE = 224


class Clock:
    """Takes the time at the end of every step, on the device's own account."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self.remark = ""

    def tick(self) -> None:
        """Note that a step has ended; waits for the device."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ends.append(perf_counter())

    def steps_s(self, warm_steps: int) -> list[float]:
        """Return seconds of each step after the warm ones."""
        ends = self._ends[warm_steps - 1 :]
        return [end - begin for begin, end in pairwise(ends)]


Contender = Callable[[str, TensorDataset, int, Clock], None]


def make_data(batch_size: int, steps: int) -> TensorDataset:
    """Return random normalised images (N, 3, 224, 224) and labels (N,) of 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    num_samples = batch_size * steps
    images = torch.randn(num_samples, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_samples,), generator=generator)
    labels[0] = NUM_CLASSES - 1  # the highest label says how many classes there are
    return TensorDataset(images, labels)


def run_deepseek(name: str, data: TensorDataset, batch_size: int, clock: Clock) -> None:
    """Our defaults; the run folder goes to a temporary place, checkpoints are off."""
    from deepseek import ModelEngine, Trainer
    from deepseek.trainer import Callback

    class Stamp(Callback):
        def on_step_end(self, trainer, result) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            ModelEngine(name),
            data,
            batch_size=batch_size,
            epochs=1,
            checkpoint_every=None,
            callbacks=[Stamp()],
            run_dir=f"{folder}/run",
        )
        trainer.fit()
        layout = ", channels-last" if trainer.assembly.channels_last else ""
        clock.remark = trainer.assembly.precision.name + layout


def run_lightning(name: str, data: TensorDataset, batch_size: int, clock: Clock) -> None:
    """Lightning's defaults; checkpoints are off."""
    import lightning
    import timm

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model(name, num_classes=NUM_CLASSES)

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.model(images), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Stamp(lightning.Callback):
        def on_train_batch_end(self, *arguments) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1,
            default_root_dir=folder,
            enable_checkpointing=False,
            callbacks=[Stamp()],
        )
        trainer.fit(Module(), DataLoader(data, batch_size=batch_size, shuffle=True))
        clock.remark = f"fp{trainer.precision.removesuffix('-true')}"


def run_timm(name: str, data: TensorDataset, batch_size: int, clock: Clock) -> None:
    """The step of timm's `train_one_epoch` with the defaults of its arguments."""
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(name, num_classes=NUM_CLASSES).to(device).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9, weight_decay=2e-5)
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
    for images, labels in DataLoader(data, batch_size=batch_size, shuffle=True):
        loss = loss_of(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    clock.remark = "fp32"


CONTENDERS: dict[str, Contender] = {
    "deepseek": run_deepseek,
    "Lightning": run_lightning,
    "timm": run_timm,
}


def compare(name: str, args: argparse.Namespace) -> list[dict]:
    """Return a record per contender for one model."""
    data = make_data(args.batch_size, args.warm_steps + args.steps)
    steps_s: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    remarks = {}
    for _ in range(args.repeats):
        for contender, run in CONTENDERS.items():
            torch.manual_seed(0)
            clock = Clock()
            with silenced():
                run(name, data, args.batch_size, clock)
            steps_s[contender] += clock.steps_s(args.warm_steps)
            remarks[contender] = clock.remark
    own_s = spread(steps_s["deepseek"])[0]
    records = []
    for contender, times in steps_s.items():
        step_s, spread_s = spread(times)
        records.append(
            {
                "model": name,
                "contender": contender,
                "precision": remarks[contender],
                "samples_per_s": args.batch_size / step_s,
                "step_ms": 1e3 * step_s,
                "step_spread_ms": 1e3 * spread_s,
                "deepseek_is_faster_by": step_s / own_s,
                "steps_s": times,
            }
        )
    return records


def to_row(record: dict) -> list[str]:
    """Return the cells of a record."""
    is_own = record["contender"] == "deepseek"
    return [
        record["model"],
        record["contender"],
        record["precision"],
        f"{record['samples_per_s']:,.1f}",
        f"{record['step_ms']:,.0f} ± {record['step_spread_ms']:,.0f}",
        "-" if is_own else f"{record['deepseek_is_faster_by']:.2f} x",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batch-size", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per trial")
    parser.add_argument("--warm-steps", type=int, default=1, help="steps before them")
    parser.add_argument("--repeats", type=int, default=2, help="interleaved trials")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    if args.warm_steps < 1 or args.steps < 1:
        parser.error("--warm-steps and --steps count from 1")
    torch.set_num_threads(args.threads)
    records = [record for name in args.models for record in compare(name, args)]
    header = ["model", "training with", "computes in", "images/s", "step ms", "ours is faster by"]
    notes = (
        f"Batch {args.batch_size}, {IMAGE_SIZE} pixels, {NUM_CLASSES} classes, random images in"
        f" memory; median of {args.repeats} x {args.steps} steps, ± half the interquartile range."
        " Each at its own defaults, checkpoints off."
    )
    report(args, records, markdown_table(header, [to_row(record) for record in records]), notes)


if __name__ == "__main__":
    main()
