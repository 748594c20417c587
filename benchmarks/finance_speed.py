"""Fine-tuning MiniLM-L6 for sentences: tokens a second, beside the Hugging Face Trainer.

The same model, sentences, batch size and number format in one process, turn by turn. A token is
one of a sentence, with those around it; filled-up places do not count. Time is from the end of the
first step to the end of the last: the first prepares, and ours writes model and report after the
last. Ours makes batches of similar length, as it comes. Theirs has two rows: batches as they come,
of any length, and with `group_by_length`, which is what `times` compares.
"""

import argparse
import time
from statistics import median

import torch

from deepseek.datasets import TextDataset
from deepseek.finance.datasets import read_phrasebank
from deepseek.trainer import Callback, Trainer
from finance_models import as_data, minilm, minilm_folder

BATCH_SIZE, ROUNDS = 32, 3
HAS_BF16 = torch.cuda.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)


class Clock(Callback):
    """Notes when the first and the last step are done."""

    first = last = 0.0

    def on_step_end(self, trainer, result) -> None:
        """Note the time of a step."""
        self.last = time.perf_counter()
        self.first = self.first or self.last


def ours(data: TextDataset, args: argparse.Namespace, turn: int) -> float:
    """Return the seconds of one epoch but for its first step."""
    clock = Clock()
    trainer = Trainer(
        minilm(), data, batch_size=BATCH_SIZE, epochs=1, lr=5e-5, device=args.device,
        precision="bf16" if HAS_BF16 else "fp32", checkpoint_every=None, callbacks=[clock],
        loggers=(), run_dir=args.output / f"speed_{time.time_ns()}_{turn}",
    )  # fmt: skip
    trainer.fit()
    return clock.last - clock.first


def theirs(data: TextDataset, args: argparse.Namespace, sampling: str) -> float:
    """Return the same of transformers' Trainer."""
    import transformers

    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [
        {"input_ids": sample["inputs"].tolist(), "labels": int(sample["targets"])}
        for sample in (data[number] for number in range(len(data)))
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)

    class TheirClock(transformers.TrainerCallback):
        first = last = 0.0

        def on_step_end(self, arguments, state, control, **kwargs):
            self.last = time.perf_counter()
            self.first = self.first or self.last

    clock = TheirClock()
    settings = transformers.TrainingArguments(
        output_dir=str(args.output / "speed_theirs"), per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1, learning_rate=5e-5, bf16=HAS_BF16, report_to=[], save_strategy="no",
        logging_strategy="no", train_sampling_strategy=sampling, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=rows, callbacks=[clock],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    return clock.last - clock.first


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each trainer."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", "All")
    data = as_data(args, sentences, str(minilm_folder()), "speed")
    num_tokens = int(data.lengths.sum()) * (1 - BATCH_SIZE / len(data))
    as_it_comes, alike = "transformers, as it comes", "transformers, group_by_length"
    seconds: dict[str, list[float]] = {"deepseek": [], as_it_comes: [], alike: []}
    for turn in range(ROUNDS):
        seconds["deepseek"].append(ours(data, args, turn))
        seconds[as_it_comes].append(theirs(data, args, "random"))
        seconds[alike].append(theirs(data, args, "group_by_length"))
    base = median(seconds[alike])
    return [
        {"trainer": name, "tokens_per_s": num_tokens / median(own), "times": base / median(own)}
        for name, own in seconds.items()
    ]
