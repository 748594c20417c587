"""Adaptation to a domain: perplexities before and after, and the task with and without it.

MiniLM learns by masked words on the FOMC corpus, general text held against it, and is fine-tuned on
the sentences of the FOMC; the same recipe without adaptation beside it. Weighted F1 on the test
sheets of the authors' splits. Epochs are fixed beforehand: nothing is chosen by the test sheets.
"""

import argparse
from time import monotonic

from deepseek.datasets import read_texts
from deepseek.finance import adapt
from deepseek.finance.datasets import read_fomc
from finance_models import f1, fine_tune, minilm, spread_of

SPLITS = ("5768", "78516", "944601")


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each measure, before and after."""
    began = monotonic()
    corpus = list(read_texts(args.data / "fomc" / "fomc_corpus.parquet"))
    done = adapt(
        minilm(outputs="hidden"), corpus, general=general_texts(args), replay=args.replay,
        epochs=None, time_budget=f"{60 * args.budget_min:.0f}s", head_steps=args.head_steps,
        loggers=(), seed=args.seed, device=args.device,
        run_dir=args.output / "adaptation", checkpoint_every=None,
        **{"batch_size": 32, "lr": 2e-4, **args.pretrain},
    )  # fmt: skip
    minutes = (monotonic() - began) / 60
    note = f"{done.num_steps} steps, {minutes:.0f} min"
    rows = [
        {
            "what": f"perplexity, {name}", "before": getattr(done.before, name),
            "after": getattr(done.after, name), "note": note,
        }
        for name in ("domain", "general")
    ]  # fmt: skip
    scores: dict[str, list[float]] = {"before": [], "after": []}
    for split in SPLITS[: args.seeds]:
        train, test = (
            read_fomc(args.data / f"fomc/{folder}_data/lab-manual-combine-{part}-{split}.xlsx")
            for part, folder in (("train", "training"), ("test", "test"))
        )
        for name, model in (("before", minilm(outputs="hidden")), ("after", done.engine.to("cpu"))):
            found = fine_tune(args, model, train, test, f"{name}_{split}")
            scores[name].append(f1(*found, "weighted"))
    rows.append({
        "what": "FOMC, weighted F1", **{name: spread_of(own) for name, own in scores.items()},
        "note": f"{args.seeds} splits; BERT 63.1 (Shah et al. 2023)",
    })  # fmt: skip
    return rows


def general_texts(args: argparse.Namespace) -> list[str]:
    """Return paragraphs of wikitext-2."""
    folder = args.data / "wikitext2_valid_test"
    texts = [text for part in ("valid", "test") for text in read_texts(folder / f"{part}.txt")]
    return [text for text in texts if len(text) > 200]
