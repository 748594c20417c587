"""What a training loop adds to a bare PyTorch loop, per step: ours beside its peers, in one run.

All loops train the same model on the same `TensorDataset` in the same order, on the CPU, in fp32,
with fused AdamW, no worker processes and no validation. A trial is timed from the end of step
`WARM_STEPS` to the end of step `WARM_STEPS + steps`, so start-up and tear-down do not count.
Repetitions are interleaved; what is added is the median of differences to the bare loop of the
same repetition.

`bare` reads through torch's `DataLoader`, as peers do. `bare, batched fetch` takes each batch with
one indexing operation, as our loader does: measured against it, our loader's gain is left out.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from measure import markdown_table, report, silenced, spread

WARM_STEPS = 30
BATCH_SIZE = 64
LR = 1e-3
WIDTHS = (128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 3072)
NEVER = 10**6


class Clock:
    """Takes the time at the end of two steps, counted from 1."""

    def __init__(self, steps: int) -> None:
        self._first, self._last = WARM_STEPS, WARM_STEPS + steps
        self._steps = steps
        self._count = 0
        self._began = self._ended = 0.0

    def tick(self) -> None:
        """Note that a step has ended."""
        self._count += 1
        if self._count == self._first:
            self._began = perf_counter()
        elif self._count == self._last:
            self._ended = perf_counter()

    def step_us(self) -> float:
        """Return microseconds per step."""
        assert self._ended > 0, f"only {self._count} of {self._last} steps were taken"
        return 1e6 * (self._ended - self._began) / self._steps


Model = Callable[[], nn.Module]
Loop = Callable[[Model, TensorDataset, Clock, bool], None]


def make_mlp(width: int) -> nn.Module:
    """Return three linear layers over 256 features."""
    torch.manual_seed(0)
    sizes = (256, width, width)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 8))


def make_linear() -> nn.Module:
    """Return next to no work."""
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def make_data(num_features: int, steps: int) -> TensorDataset:
    """Return one epoch, two steps longer than what is timed."""
    generator = torch.Generator().manual_seed(0)
    num_samples = BATCH_SIZE * (WARM_STEPS + steps + 2)
    inputs = torch.randn(num_samples, num_features, generator=generator)
    return TensorDataset(inputs, torch.arange(num_samples) % 8)


def make_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that all loops share."""
    return torch.optim.AdamW(model.parameters(), lr=LR, fused=True)


def torch_loader(data: TensorDataset) -> DataLoader:
    """Return torch's loader as everybody writes it."""
    return DataLoader(data, batch_size=BATCH_SIZE, shuffle=False, num_workers=0)


def _run_bare(model: nn.Module, batches: Iterable[list[Tensor]], clock: Clock) -> None:
    opt = make_adamw(model)
    for x, y in batches:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        clock.tick()


def run_bare(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """The reference: five lines."""
    _run_bare(make(), torch_loader(data), clock)


def run_bare_batched(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """The reference with a loader that indexes once per batch."""

    class WholeBatches(TensorDataset):
        def __getitem__(self, index: list[int]) -> tuple[Tensor, ...]:
            picked = torch.tensor(index)
            return tuple(tensor[picked] for tensor in self.tensors)

    sampler = BatchSampler(SequentialSampler(data), BATCH_SIZE, drop_last=False)
    loader = DataLoader(WholeBatches(*data.tensors), sampler=sampler, batch_size=None)
    _run_bare(make(), loader, clock)


def run_deepseek(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """Our own."""
    from deepseek import Optimizer, Trainer
    from deepseek.datasets import DataLoader as OurLoader
    from deepseek.trainer import Callback

    class Stamp(Callback):
        def on_step_end(self, trainer, result) -> None:
            clock.tick()

    switches = {"clip_grad_norm": None, "schedule": "constant", "warmup": 0}
    switches |= {"log_every": NEVER, "loggers": ()}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            make(),
            OurLoader(data, batch_size=BATCH_SIZE, shuffle=False, num_workers=0),
            epochs=1,
            optimizer=Optimizer("adamw", LR, 0.01),
            precision="fp32",
            device="cpu",
            checkpoint_every=None,
            callbacks=[Stamp()],
            run_dir=f"{folder}/run",
            **({} if defaults else switches),
        ).fit()


def run_lightning(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """Lightning's `Trainer`."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            if defaults:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_adamw(self.model)

    class Stamp(lightning.Callback):
        def on_train_batch_end(self, *arguments) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            default_root_dir=folder,
            logger=defaults,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Stamp()],
        ).fit(Module(), torch_loader(data))


def run_accelerate(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """The bare loop with Accelerate's objects; it has no logging of its own to switch on."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = make()
    model, opt, batches = accelerator.prepare(model, make_adamw(model), torch_loader(data))
    for x, y in batches:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        opt.step()
        clock.tick()


def run_hf_trainer(make: Model, data: TensorDataset, clock: Clock, defaults: bool) -> None:
    """The `Trainer` of transformers, with the model in the form that it expects."""
    import transformers

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Stamp(transformers.TrainerCallback):
        def on_step_end(self, *arguments, **more) -> None:
            clock.tick()

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *arguments) -> SequentialSampler:
            return SequentialSampler(data)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        xs, ys = zip(*samples, strict=True)
        return {"x": torch.stack(xs), "labels": torch.stack(ys)}

    model = Model()
    optimizer = make_adamw(model)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    switches = {"max_grad_norm": 0.0, "logging_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LR,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            **({} if defaults else switches),
        )
        InOrder(
            model,
            settings,
            data_collator=collate,
            train_dataset=data,
            optimizers=(None, None) if defaults else (optimizer, constant),
            callbacks=[Stamp()],
        ).train()


LOOPS: dict[str, Loop] = {
    "bare": run_bare,
    "bare, batched fetch": run_bare_batched,
    "deepseek": run_deepseek,
    "Accelerate": run_accelerate,
    "Lightning": run_lightning,
    "HF Trainer": run_hf_trainer,
}
WITHOUT_DEFAULTS = {"bare", "bare, batched fetch", "Accelerate"}


def time_loop(loop: Loop, make: Model, data: TensorDataset, steps: int, defaults: bool) -> float:
    """Return microseconds per step of one trial."""
    clock = Clock(steps)
    with silenced():
        loop(make, data, clock, defaults)
    return clock.step_us()


def calibrate(target_us: float) -> tuple[int, float]:
    """Return the width whose bare step comes nearest to `target_us`, and its time."""
    data = make_data(256, 40)
    times = {}
    for width in WIDTHS:
        times[width] = time_loop(run_bare, lambda w=width: make_mlp(w), data, 40, False)
        if times[width] > 1.5 * target_us:
            break
    width = min(times, key=lambda w: abs(times[w] - target_us))
    return width, times[width]


def compare(name: str, make: Model, num_features: int, steps: int, repeats: int) -> list[dict]:
    """Return a record per loop and setting of one model."""
    data = make_data(num_features, steps)
    trials = {(loop, False): [] for loop in LOOPS}
    trials |= {(loop, True): [] for loop in LOOPS if loop not in WITHOUT_DEFAULTS}
    for _ in range(repeats):
        for (loop, defaults), times in trials.items():
            times.append(time_loop(LOOPS[loop], make, data, steps, defaults))
    records = []
    for (loop, defaults), times in trials.items():
        added = [own - bare for own, bare in zip(times, trials["bare", False], strict=True)]
        batched = trials["bare, batched fetch", False]
        strict = [own - bare for own, bare in zip(times, batched, strict=True)]
        bare_us = spread(trials["bare", False])[0]
        added_us, added_spread_us = spread(added)
        records.append(
            {
                "model": name,
                "loop": loop,
                "settings": "defaults" if defaults else "extras off",
                "step_us": spread(times)[0],
                "added_us": added_us,
                "added_spread_us": added_spread_us,
                "added_share": added_us / bare_us,
                "added_to_batched_us": spread(strict)[0],
                "trials_us": times,
            }
        )
    return records


def to_row(record: dict) -> list[str]:
    """Return the cells of a record."""
    is_reference = record["loop"] == "bare"
    return [
        record["loop"],
        record["model"],
        record["settings"],
        f"{record['step_us']:,.1f}",
        "-" if is_reference else f"{record['added_us']:+,.1f} ± {record['added_spread_us']:,.1f}",
        "-" if is_reference else f"{100 * record['added_share']:+.1f} %",
        f"{record['added_to_batched_us']:+,.1f}"
        if record["loop"] != "bare, batched fetch"
        else "-",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="timed steps of the MLP per trial")
    parser.add_argument("--tiny-steps", type=int, default=2000, help="likewise, of Linear(8, 8)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--target-ms", type=float, default=5.0, help="bare step of the MLP")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = compare("Linear(8, 8)", make_linear, 8, args.tiny_steps, args.repeats)
    if args.steps:
        width, _ = calibrate(1e3 * args.target_ms)
        name = f"MLP 256-{width}-{width}-8"
        records += compare(name, lambda: make_mlp(width), 256, args.steps, args.repeats)
    header = ["loop", "model", "settings", "step µs", "added µs", "added", "added to batched µs"]
    notes = (
        f"Batch {BATCH_SIZE}, fp32, AdamW fused=True, no workers, no validation, no checkpoints;"
        f" median of {args.repeats} interleaved trials of {args.tiny_steps} (Linear) and"
        f" {args.steps} (MLP) steps, ± half the interquartile range.\n"
        "`extras off`: no logging, clipping or schedule. `defaults`: as each framework ships"
        " (ours and HF Trainer clip, schedule and log; Lightning logs the loss)."
    )
    report(args, records, markdown_table(header, [to_row(record) for record in records]), notes)


if __name__ == "__main__":
    main()
