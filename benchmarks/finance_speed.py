"""Fine-tuning MiniLM-L6 for sentences: tokens a second, beside the Hugging Face Trainer.

The same model, sentences, batch size and number format in one process, turn by turn. A token is
one of a sentence, with those around it; filled-up places do not count. Time is from the end of the
first epoch, which prepares and compiles, to the last step: ours writes model and report after that.
Ours makes batches of similar length, as it comes. Theirs has rows with batches as they come, of any
length, and with `group_by_length`, which is what `times` compares. Each has a row with a compiled
model too: `graph="static"` and `torch_compile`.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import torch

from deepseek.datasets import TextDataset
from deepseek.finance.datasets import read_phrasebank
from deepseek.trainer import Callback, Trainer
from finance_models import as_data, minilm, minilm_folder

BATCH_SIZE, ROUNDS = 32, 3


def uses_gpu(args: argparse.Namespace) -> bool:
    """Return whether steps are taken on a GPU: the one there is, unless a CPU is asked for."""
    return args.device != "cpu" and torch.cuda.is_available()


def has_bf16(args: argparse.Namespace) -> bool:
    """Return whether the chip computes in bf16."""
    return uses_gpu(args) or torch.cpu.get_capabilities().get("avx512_bf16", False)


def count_epochs(args: argparse.Namespace) -> int:
    """Return how many are taken: on a GPU one takes a second."""
    return 6 if uses_gpu(args) else 2


def measured_steps(data: TextDataset, args: argparse.Namespace) -> tuple[int, int]:
    """Return the steps after which time begins and ends."""
    steps = -(-len(data) // BATCH_SIZE)
    return steps, count_epochs(args) * steps


class Clock(Callback):
    """Notes when two steps are done, on the device too."""

    def __init__(self, data: TextDataset, args: argparse.Namespace) -> None:
        self.steps, self.waits = measured_steps(data, args), uses_gpu(args)
        self.times: list[float] = []

    def note(self, step: int) -> None:
        """Note the time after a step, if it is one of the two."""
        if step in self.steps:
            if self.waits:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def on_step_end(self, trainer, result) -> None:
        """Note the time of a step."""
        self.note(trainer.step)

    @property
    def seconds(self) -> float:
        """Between the two."""
        begin, end = self.times
        return end - begin


def ours(data: TextDataset, args: argparse.Namespace, graph: Literal["dynamic", "static"]) -> float:
    """Return the seconds of the steps that are measured."""
    clock = Clock(data, args)
    trainer = Trainer(
        minilm(), data, batch_size=BATCH_SIZE, epochs=count_epochs(args), lr=5e-5,
        device=args.device, precision="bf16" if has_bf16(args) else "fp32", graph=graph,
        checkpoint_every=None, callbacks=[clock], loggers=(),
        run_dir=args.output / f"speed_{time.time_ns()}",
    )  # fmt: skip
    trainer.fit()
    return clock.seconds


def theirs(
    data: TextDataset, args: argparse.Namespace, sampling: str, *, is_compiled: bool = False
) -> float:
    """Return the same of transformers' Trainer."""
    import transformers

    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    filler = data.tokenizer.pad_token  # a sample alone is filled up, too
    rows = [
        {
            "input_ids": [token for token in sample["inputs"].tolist() if token != filler],
            "labels": int(sample["targets"]),
        }
        for sample in (data[number] for number in range(len(data)))
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)

    clock = Clock(data, args)

    class TheirClock(transformers.TrainerCallback):
        def on_step_end(self, arguments, state, control, **kwargs):
            clock.note(state.global_step)

    settings = transformers.TrainingArguments(
        output_dir=str(args.output / "speed_theirs"), per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=count_epochs(args), learning_rate=5e-5, bf16=has_bf16(args), report_to=[],
        save_strategy="no", logging_strategy="no", train_sampling_strategy=sampling,
        disable_tqdm=True, use_cpu=not uses_gpu(args), torch_compile=is_compiled,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=rows, callbacks=[TheirClock()],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    return clock.seconds


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each trainer."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", "All")
    data = as_data(args, sentences, str(minilm_folder()), "speed")
    begin, end = measured_steps(data, args)
    num_tokens = int(data.lengths.sum()) * count_epochs(args) * (1 - begin / end)
    alike = "transformers, group_by_length"
    ways: dict[str, Callable[[], float]] = {
        "deepseek": lambda: ours(data, args, "dynamic"),
        "deepseek, static graph": lambda: ours(data, args, "static"),
        "transformers, as it comes": lambda: theirs(data, args, "random"),
        alike: lambda: theirs(data, args, "group_by_length"),
        f"{alike}, compiled": lambda: theirs(data, args, "group_by_length", is_compiled=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, measure in ways.items():
            torch.compiler.reset()  # what another way compiled is not its own
            seconds[name].append(measure())
    base = median(seconds[alike])
    return [
        {"trainer": name, "tokens_per_s": num_tokens / median(own), "times": base / median(own)}
        for name, own in seconds.items()
    ]
