"""Sentiment of financial news, Financial PhraseBank: fine-tuned MiniLM beside two floors.

Stratified folds; of the training part a tenth is held back, which says which epoch's model is taken
(macro-F1), or nothing with `--held-back 0`; the test fold is looked at once. The floors learn from
the whole training part: TF-IDF of one and two words with logistic regression, and logistic
regression on MiniLM's frozen sentence vectors. With `--first-epochs` the encoder learns tasks that
are near before, for all folds once (`finance_first`); the minutes count that. Scores are in per
cent, mean and standard deviation over the folds that were run.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deepseek.datasets import TextDataset
from deepseek.finance.datasets import Sentences, read_phrasebank
from deepseek.models import ModelEngine, sentence_vectors
from deepseek.models.encoder_outputs import with_outputs
from deepseek.trainer import Trainer
from deepseek.trainer.cross_validation import CrossValidation, Folds, choose_folds, cross_validate
from finance_first import learn_first
from finance_models import RECIPE, as_data, f1, minilm, minilm_folder, spread_of


def floors(texts: list[str], labels: np.ndarray, fold_of: np.ndarray, wanted: list[int]) -> dict:
    """Return macro-F1 and accuracy of each floor in each fold."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectors = sentence_vectors(minilm(outputs="hidden"), texts).numpy()
    words = np.array(texts, object)
    found: dict[str, list] = {"TF-IDF": [], "frozen": []}
    for fold in wanted:
        test, train = fold_of == fold, fold_of != fold
        tfidf = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
            LogisticRegression(C=10, max_iter=2000, class_weight="balanced"),
        )
        frozen = LogisticRegression(C=10, max_iter=2000, class_weight="balanced")
        for name, model, inputs in (("TF-IDF", tfidf, words), ("frozen", frozen, vectors)):
            predicted = model.fit(inputs[train], labels[train]).predict(inputs[test])
            accuracy = float((predicted == labels[test]).mean())
            found[name].append((f1(labels[test], predicted), accuracy))
    return found


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for each method on each agreement."""
    return [row for which in args.agreement for row in _rows(args, which)]


def _rows(args: argparse.Namespace, agreement: str) -> list[dict]:
    sentences = read_phrasebank(args.data / "financial_phrasebank", agreement)
    data = as_data(args, sentences, str(minilm_folder()), f"phrasebank_{agreement}")
    folds = choose_folds(data, args.num_folds, args.seed)
    wanted = list(args.folds if args.folds is not None else range(args.num_folds))
    rows = floors(list(sentences.texts), np.array(sentences.labels), folds.fold_of, wanted)
    began = time.perf_counter()
    make_model = _after_first(args, sentences) if args.first_epochs else minilm
    result = validate(args, make_model, data, folds, wanted, f"phrasebank_{agreement}")
    minutes = (time.perf_counter() - began) / 60 / len(wanted)
    rows["fine-tuned"] = [(own["macro_f1"], own["accuracy"]) for own in result.metrics.values()]
    leaks = len(folds.leaks)
    return [
        {
            "data": f"{agreement}Agree", "method": name, "folds": len(scores),
            "macro-F1": spread_of([score[0] for score in scores]),
            "accuracy": spread_of([score[1] for score in scores]),
            "minutes a fold": minutes if name == "fine-tuned" else None,
            "near-duplicates across folds": leaks,
        }
        for name, scores in rows.items()
    ]  # fmt: skip


def _after_first(args: argparse.Namespace, sentences: Sentences) -> Callable[[], ModelEngine]:
    """Return what makes an encoder that has learned near tasks before."""
    encoder = learn_first(args, minilm(), str(minilm_folder()), list(sentences.texts))
    return lambda: with_outputs(encoder, "sequence", seed=args.seed)


def validate(
    args: argparse.Namespace,
    make_model: Callable[[], ModelEngine],
    data: TextDataset,
    folds: Folds,
    wanted: list[int],
    name: str,
) -> CrossValidation:
    """Fine-tune a model in each wanted fold."""

    def make_trainer(train: TextDataset, held_back: TextDataset | None, place: Path) -> Trainer:
        torch.manual_seed(args.seed)
        chosen = {} if held_back is None else {"monitor": "val_macro_f1"}
        return Trainer(
            make_model(), train, held_back, run_dir=place, seed=args.seed, device=args.device,
            **{**RECIPE, **chosen, **args.recipe},
        )  # fmt: skip

    return cross_validate(
        make_trainer, data, folds, args.output / name, only=wanted, val_share=args.held_back,
        seed=args.seed,
    )  # fmt: skip
