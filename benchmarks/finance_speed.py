"""Fine-tuning MiniLM-L6 for sentences: tokens a second, beside the Hugging Face Trainer.

The same model, sentences, batch size and number format in one process, turn by turn. A token is
one of a sentence, with those around it; filled-up places do not count. Both are used as their pages
say: ours with batches of similar length, theirs with `group_by_length`.
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


class Begin(Callback):
    """Notes when the first step is done: what is prepared before it is not counted."""

    at = 0.0

    def on_step_end(self, trainer, result) -> None:
        """Note the time of the first."""
        self.at = self.at or time.perf_counter()


def ours(data: TextDataset, args: argparse.Namespace, turn: int) -> float:
    """Return the seconds of one epoch but for its first step."""
    begin = Begin()
    trainer = Trainer(
        minilm(), data, batch_size=BATCH_SIZE, epochs=1, lr=5e-5, device=args.device,
        precision="bf16" if HAS_BF16 else "fp32", checkpoint_every=None, callbacks=[begin],
        loggers=(), run_dir=args.output / f"speed_{time.time_ns()}_{turn}",
    )  # fmt: skip
    trainer.fit()
    return time.perf_counter() - begin.at


def theirs(data: TextDataset, args: argparse.Namespace) -> float:
    """Return the same of transformers' Trainer."""
    import transformers

    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [
        {"input_ids": sample["inputs"].tolist(), "labels": int(sample["targets"])}
        for sample in (data[number] for number in range(len(data)))
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)

    class First(transformers.TrainerCallback):
        at = 0.0

        def on_step_end(self, arguments, state, control, **kwargs):
            self.at = self.at or time.perf_counter()

    first = First()
    settings = transformers.TrainingArguments(
        output_dir=str(args.output / "speed_theirs"), per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1, learning_rate=5e-5, bf16=HAS_BF16, report_to=[], save_strategy="no",
        logging_strategy="no", train_sampling_strategy="group_by_length", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=rows, callbacks=[first],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    return time.perf_counter() - first.at


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each trainer."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", "All")
    data = as_data(args, sentences, str(minilm_folder()), "speed")
    num_tokens = int(data.lengths.sum()) * (1 - BATCH_SIZE / len(data))
    seconds: dict[str, list[float]] = {"deepseek": [], "transformers": []}
    for turn in range(ROUNDS):
        seconds["deepseek"].append(ours(data, args, turn))
        seconds["transformers"].append(theirs(data, args))
    base = median(seconds["transformers"])
    return [
        {"trainer": name, "tokens_per_s": num_tokens / median(own), "times": base / median(own)}
        for name, own in seconds.items()
    ]
