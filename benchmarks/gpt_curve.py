"""One GPT twice under our loop: ours and Hugging Face's, from the same weights, on wikitext-2.

A random GPT-2 of transformers is converted; both train on the same batches in the
same order. What is printed are the mean and largest difference of their losses over the steps, and
the tokens per second of each, from steps in rotation. In bfloat16 the curves part by rounding; in
fp32 (`--precision fp32`) they are the same to many digits.

    python benchmarks/gpt_curve.py ../shared/data/wikitext2_valid_test/valid.txt
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import transformers
from torch import Tensor, nn

from deepseek.convert import pytorch_to_deepseek
from deepseek.datasets import DataLoader, TextDataset, read_texts, train_tokenizer
from deepseek.models import ModelEngine
from deepseek.trainer import Trainer
from deepseek.trainer.device import cpu_threads
from measure import markdown_table, report, silenced, spread


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, T, V)."""
        return self.model(tokens, use_cache=False).logits


class Contestant:
    """A model in our step, ready to take turns."""

    def __init__(self, model: nn.Module, data: TextDataset, args, folder: str) -> None:
        loader = DataLoader(data, batch_size=args.batch, shuffle=True, seed=0)
        trainer = Trainer(
            model, loader, max_steps=args.rounds * args.steps, lr=args.lr, run_dir=folder,
            precision=args.precision, graph=args.graph, device=args.device, num_workers=0,
            loggers=(),
        )  # fmt: skip
        self._step = trainer.assembly.step
        self._threads = trainer.assembly.cpu_threads
        trainer.model.train()
        self._batches = iter(trainer.train_loader)
        self.losses: list[float] = []

    def take(self, steps: int) -> float:
        """Take steps and return the seconds of one."""
        batches = [next(self._batches) for _ in range(steps)]
        with cpu_threads(self._threads):
            began = perf_counter()
            for batch in batches:
                measured = self._step.measure(self._step.accumulate(batch))
                result = self._step.update(batch, measured, len(self.losses))
                self.losses.append(float(result.loss_sum) / result.num_items)
            return (perf_counter() - began) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="wikitext-2, or any text")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--graph", default="dynamic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    with silenced(), tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(read_texts(args.text), "bpe", vocab_size=8192)
        data = TextDataset(args.text, tokenizer=tokenizer, sequence_length=args.length, cache="off")
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=tokenizer.vocab_size, n_positions=args.length, n_embd=args.dim,
            n_layer=args.layers, n_head=args.heads, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]: of its base class
        )  # fmt: skip
        theirs = transformers.GPT2LMHeadModel(config)
        ours = pytorch_to_deepseek(theirs)
        pair = [
            Contestant(model, data, args, f"{folder}/{name}")
            for name, model in (("ours", ours), ("theirs", ModelEngine.wrap(Logits(theirs))))
        ]
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(args.rounds):
            for at in (0, 1) if number % 2 == 0 else (1, 0):
                times[at].append(pair[at].take(args.steps))
    ratio, half = spread([b / a for a, b in zip(*times, strict=True)][1:])
    losses = [contestant.losses for contestant in pair]
    differences = [abs(a - b) for a, b in zip(*losses, strict=True)]
    tokens = args.batch * args.length
    records = [
        {"model": name, "per_s": tokens / median(taken[1:]), "first": curve[0], "last": curve[-1]}
        for name, taken, curve in zip(("deepseek", "transformers"), times, losses, strict=True)
    ]
    rows = [
        (r["model"], f"{r['per_s']:,.0f}", f"{r['first']:.4f}", f"{r['last']:.4f}") for r in records
    ]
    notes = (
        f"Losses of {len(differences)} steps differ by {sum(differences) / len(differences):.2e} on"
        f" average and {max(differences):.2e} at most; ours is {ratio:.3f} ± {half:.3f} times as"
        f" fast. {args.layers} layers of {args.dim}, {tokenizer.vocab_size} tokens, batches of"
        f" {args.batch} x {args.length}, {args.precision}, graph {args.graph}."
    )
    header = ("model", "tokens/s", "first loss", "last loss")
    report(args, records, markdown_table(header, rows), notes)


if __name__ == "__main__":
    main()
