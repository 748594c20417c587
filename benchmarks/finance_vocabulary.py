"""A vocabulary that grows: lengths on texts held out, tokenising speed, and the task's score.

MiniLM-L6 takes terms of Twitter financial news and of the FOMC corpus. Speed is by the clock of the
process, old and new by turns: old time / new time, above 1 the new tokenizer is faster. With
`--growth-epochs` above 0 also the macro-F1 on Twitter, with and without growth, the same recipe.
"""

import argparse
import os
from collections.abc import Sequence
from time import process_time

import numpy as np

from deepseek.datasets import Tokenizer, read_texts
from deepseek.finance import grow_vocabulary
from deepseek.finance.datasets import read_twitter_news
from deepseek.finance.vocabulary import measure_lengths, own_tokenizer
from deepseek.models import ModelEngine
from finance_models import f1, fine_tune, minilm, spread_of


def run(args: argparse.Namespace) -> list[dict]:
    """Return what growing changes: lengths, speed, and F1 if asked."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: times that can be compared
    twitter = args.data / "twitter_financial_news"
    fomc = list(read_texts(args.data / "fomc" / "fomc_corpus.parquet"))
    is_kept = np.random.default_rng(0).random(len(fomc)) < 0.1
    kept = [text for text, held in zip(fomc, is_kept, strict=True) if held]
    used = [text for text, held in zip(fomc, is_kept, strict=True) if not held]
    engine = minilm(outputs="hidden")
    corpus = [*read_texts(twitter / "sent_train.csv"), *used]
    grown = grow_vocabulary(engine, None, corpus, max_terms=2000, min_count=3)
    old = own_tokenizer(engine)
    terms = f"{len(grown.terms)} terms, {grown.num_in_free_places} in free places"
    rows = []
    sources = {"Twitter": list(read_texts(twitter / "sent_valid.csv")), "FOMC": kept}
    for name, texts in sources.items():
        before, after = measure_lengths(old, texts), measure_lengths(grown.tokenizer, texts)
        shorter = 1 - after.mean_tokens / before.mean_tokens
        rows += [
            {
                "what": f"{name}, held out: tokens per text", "before": before.mean_tokens,
                "after": after.mean_tokens, "note": f"{shorter:.1%} shorter; {terms}",
            },
            {
                "what": f"{name}, held out: texts a second", "before": 1.0,
                "after": tokenising_ratio(old, grown.tokenizer, texts),
            },
        ]  # fmt: skip
    if args.growth_epochs:
        scores = {
            name: [twitter_f1(args, model, seed, name) for seed in range(args.seeds)]
            for name, model in (("before", engine), ("after", grown.engine))
        }
        rows.append({
            "what": "Twitter: macro-F1", **{name: spread_of(own) for name, own in scores.items()},
            "note": f"{args.growth_epochs} epochs, {args.seeds} seeds",
        })  # fmt: skip
    return rows


def tokenising_ratio(old: Tokenizer, new: Tokenizer, texts: Sequence[str]) -> float:
    """Return old time / new time of tokenising, each the best of nine, taken by turns."""
    times: dict[str, list[float]] = {"old": [], "new": []}
    for _ in range(9):
        for name, tokenizer in (("old", old), ("new", new)):
            began = process_time()
            tokenizer.encode(texts, is_whole=False)
            times[name].append(process_time() - began)
    return min(times["old"]) / min(times["new"])


def twitter_f1(args: argparse.Namespace, engine: ModelEngine, seed: int, name: str) -> float:
    """Return the macro-F1 on the validation sentences after the last epoch."""
    folder = args.data / "twitter_financial_news"
    train, test = (read_twitter_news(folder / f"sent_{part}.csv") for part in ("train", "valid"))
    return f1(
        *fine_tune(
            args, engine, train, test, f"twitter_{name}_{seed}", seed=seed,
            epochs=args.growth_epochs,
        )
    )  # fmt: skip
