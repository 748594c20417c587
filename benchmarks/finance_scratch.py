"""An encoder pretrained here, from nothing: PhraseBank with and without, beside TF-IDF.

An encoder of 13.8 million weights learns by masked words on the FOMC corpus, wikitext-2's
validation and test parts, Twitter financial news and the sentences of the training folds alone. It
is fine-tuned in one fold, beside the same encoder with random weights and the same recipe; with
`--first-epochs` also after tasks that are near (`finance_first`).
"""

import argparse
from time import monotonic

import numpy as np
import torch

from deepseek.datasets import read_texts
from deepseek.finance import adapt
from deepseek.finance.datasets import read_phrasebank, read_twitter_news
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from deepseek.trainer.cross_validation import choose_folds
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
    fold = (args.folds or [0])[0]
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
        loggers=(), seed=args.seed, device=args.device, run_dir=args.output / "scratch_pretrained",
        checkpoint_every=None, **{"batch_size": 32, "lr": 7e-4, **args.pretrain},
    )  # fmt: skip
    minutes = (monotonic() - began) / 60
    data = as_data(args, sentences, done.tokenizer, "scratch")
    torch.manual_seed(args.seed)
    config = {**done.engine.config, "outputs": "hidden", "num_classes": None}
    nothing = ModelEngine("encoder", **config)
    starts = {"random": nothing, "pretrained": done.engine.to("cpu")}
    if args.first_epochs:
        known = list(sentences.texts)
        starts["and near tasks"] = learn_first(args, done.engine, done.tokenizer, known)
    rows = []
    for name, engine in starts.items():
        found = validate(
            args, lambda engine=engine: with_outputs(engine, "sequence", seed=args.seed), data,
            folds, [fold], f"scratch_{name}",
        )  # fmt: skip
        scores = [own["macro_f1"] for own in found.metrics.values()]
        rows.append({"start": name, "macro-F1": spread_of(scores)})
    rows[1]["note"] = (
        f"{done.num_steps} steps in {minutes:.0f} min, perplexity {done.after.domain:.1f};"
        f" {done.engine.num_parameters / 1e6:.1f} million weights"
    )
    floor = floors(list(sentences.texts), np.array(sentences.labels), folds.fold_of, [fold])
    tfidf = spread_of([score[0] for score in floor["TF-IDF"]])
    return [*rows, {"start": "TF-IDF", "macro-F1": tfidf, "note": f"fold {fold} of 50Agree"}]
