"""An encoder pretrained here, from nothing: PhraseBank with and without, beside TF-IDF.

An encoder of 13.8 million weights learns by masked words on the FOMC corpus, wikitext-2's
validation and test parts, Twitter financial news and the sentences of the training folds alone. It
is fine-tuned in each of `--folds` (by default the first), for which it is pretrained anew, beside
the same encoder with random weights and the same recipe; with `--first-epochs` also after tasks
that are near (`finance_first`). Scores are in per cent, mean and standard deviation over the folds;
steps, minutes and perplexity are means.
"""

import argparse
from dataclasses import dataclass
from statistics import fmean
from time import monotonic

import numpy as np
import torch

from deepseek.datasets import read_texts
from deepseek.finance import adapt
from deepseek.finance.datasets import Sentences, read_phrasebank, read_twitter_news
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from deepseek.trainer.cross_validation import Folds, choose_folds
from finance_adaptation import general_texts
from finance_first import learn_first
from finance_models import as_data, minilm_folder, spread_of
from finance_phrasebank import floors, validate

SIZES = {"num_layers": 6, "dim": 384, "heads": 6, "dropout": 0.0}


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each start of the encoder, and for TF-IDF."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", "50")
    plain = as_data(args, sentences, str(minilm_folder()), "scratch")
    folds = choose_folds(plain, args.num_folds, args.seed)
    wanted = args.folds or [0]
    found = [_one_fold(args, sentences, folds, fold) for fold in wanted]
    rows = [
        {"start": name, "macro-F1": spread_of([each.scores[name] for each in found])}
        for name in found[0].scores
    ]
    rows[1]["note"] = (
        f"{fmean(each.steps for each in found):.0f} steps in"
        f" {fmean(each.minutes for each in found):.0f} min, perplexity"
        f" {fmean(each.perplexity for each in found):.1f}; {found[0].millions:.1f} million weights"
    )
    floor = floors(list(sentences.texts), np.array(sentences.labels), folds.fold_of, wanted)
    tfidf = spread_of([score[0] for score in floor["TF-IDF"]])
    named = f"fold{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))} of 50Agree"
    return [*rows, {"start": "TF-IDF", "macro-F1": tfidf, "note": named}]


@dataclass(frozen=True)
class OneFold:
    """What a fold has given: macro-F1 by start, and the pretraining."""

    scores: dict[str, float]
    steps: int
    minutes: float
    perplexity: float
    millions: float


def _one_fold(args: argparse.Namespace, sentences: Sentences, folds: Folds, fold: int) -> OneFold:
    """Pretrain without the test sentences of a fold, and fine-tune in it."""
    args = argparse.Namespace(**{**vars(args), "output": args.output / f"scratch_fold_{fold}"})
    texts = np.array(sentences.texts, object)
    corpus = [
        *read_texts(args.data / "fomc" / "fomc_corpus.parquet"), *general_texts(args),
        *read_twitter_news(args.data / "twitter_financial_news" / "sent_train.csv").texts,
        *texts[folds.fold_of != fold],
    ]  # fmt: skip
    began = monotonic()
    done = adapt(
        SIZES, corpus, tokenizer="wordpiece", vocab_size=8192, masking="words",
        weight_decay=0.01, epochs=None, time_budget=f"{60 * args.budget_min:.0f}s",
        loggers=(), seed=args.seed, device=args.device, run_dir=args.output / "pretrained",
        checkpoint_every=None, **{"batch_size": 32, "lr": 7e-4, **args.pretrain},
    )  # fmt: skip
    minutes = (monotonic() - began) / 60
    data = as_data(args, sentences, done.tokenizer, "scratch")
    torch.manual_seed(args.seed)
    config = {**done.engine.config, "outputs": "hidden", "num_classes": None}
    starts = {"random": ModelEngine("encoder", **config), "pretrained": done.engine.to("cpu")}
    if args.first_epochs:
        known = list(sentences.texts)
        starts["and near tasks"] = learn_first(args, done.engine, done.tokenizer, known)
    scores = {}
    for name, engine in starts.items():
        found = validate(
            args, lambda engine=engine: with_outputs(engine, "sequence", seed=args.seed), data,
            folds, [fold], name.replace(" ", "_"),
        )  # fmt: skip
        scores[name] = found.metrics[fold]["macro_f1"]
    return OneFold(
        scores, done.num_steps, minutes, done.after.domain, done.engine.num_parameters / 1e6
    )
