"""Three tasks by one encoder, beside an encoder for each: PhraseBank, Twitter, FiQA.

Macro-F1 on the first fold of PhraseBank (AllAgree) and on Twitter's validation file, R2 on FiQA's
test files (headlines and posts, mean score of a sentence). All begin as MiniLM and have the same
recipe and as many epochs over each task's sentences; the last weights count. Means over `--seeds`
seeds of heads and order, with the standard deviation of the mean score.
"""

import argparse
from statistics import fmean
from time import monotonic

import numpy as np
import torch

from deepseek.datasets import MultiTaskDataset, TextDataset
from deepseek.finance.datasets import (
    Sentences,
    read_fiqa,
    read_phrasebank,
    read_twitter_news,
)
from deepseek.models import ModelEngine, MultiHead
from deepseek.trainer import Trainer
from deepseek.trainer.cross_validation import choose_folds
from deepseek.trainer.evaluation import evaluate_model
from finance_models import RECIPE, as_data, minilm, minilm_folder, spread_of

SCORES = {"phrasebank": "macro_f1", "twitter": "macro_f1", "fiqa": "r2"}


def run(args: argparse.Namespace) -> list[dict]:
    """Return a row for the single tasks together, and for each weighting."""
    train, test = read_tasks(args)
    seeds = range(args.seed, args.seed + args.seeds)
    began = monotonic()
    alone = [
        {name: learn_alone(args, seed, name, train[name], test[name]) for name in train}
        for seed in seeds
    ]
    rows = [describe("an encoder for each", alone, 3 * 22.7, monotonic() - began)]
    for weighting in args.weightings:
        began = monotonic()
        found = [learn_together(args, seed, weighting, train, test) for seed in seeds]
        rows.append(describe(f"one, {label(weighting)}", found, 22.7, monotonic() - began))
    return rows


def read_tasks(args: argparse.Namespace) -> tuple[dict[str, TextDataset], dict[str, TextDataset]]:
    """Return training and test data of each task."""
    sentences = read_phrasebank(args.data / "financial_phrasebank", "All")
    whole = as_data(args, sentences, str(minilm_folder()), "multi_phrasebank")
    is_test = choose_folds(whole, args.num_folds, args.seed).fold_of == 0
    twitter, fiqa = args.data / "twitter_financial_news", args.data / "fiqa_absa"
    parts = {
        "train": {
            "phrasebank": part_of(sentences, ~is_test),
            "twitter": read_twitter_news(twitter / "sent_train.csv"),
            "fiqa": read_fiqa(*sorted(fiqa.glob("task1_*_train.json"))),
        },
        "test": {
            "phrasebank": part_of(sentences, is_test),
            "twitter": read_twitter_news(twitter / "sent_valid.csv"),
            "fiqa": read_fiqa(*sorted(fiqa.glob("task1_*_test.json"))),
        },
    }
    folder = str(minilm_folder())
    train, test = (
        {name: as_data(args, own, folder, f"multi_{name}_{part}") for name, own in tasks.items()}
        for part, tasks in parts.items()
    )
    return train, test


def part_of(sentences: Sentences, is_chosen: np.ndarray) -> Sentences:
    """Return some of the sentences."""
    where = np.flatnonzero(is_chosen)
    texts, labels = ([own[at] for at in where] for own in (sentences.texts, sentences.labels))
    return Sentences(tuple(texts), tuple(labels), sentences.class_names, sentences.licence)


def learn_alone(
    args: argparse.Namespace, seed: int, name: str, train: TextDataset, test: TextDataset
) -> float:
    """Return the score of an encoder of one task."""
    torch.manual_seed(seed)
    recipe = dict(RECIPE)
    if SCORES[name] == "r2":
        recipe.pop("label_smoothing")  # of classes
    trainer = Trainer(
        minilm(), train, seed=seed, device=args.device, loggers=(),
        run_dir=args.output / f"multi_{name}_{seed}", **{**recipe, **args.recipe},
    )  # fmt: skip
    trainer.fit()
    return evaluate_model(trainer.model, test, device=args.device)[SCORES[name]]


def learn_together(
    args: argparse.Namespace,
    seed: int,
    weighting: str | dict,
    train: dict[str, TextDataset],
    test: dict[str, TextDataset],
) -> dict[str, float]:
    """Return the scores of one encoder of all tasks."""
    model = train_heads(
        args, minilm(outputs="hidden"), train, seed, f"multi_{label(weighting)}_{seed}",
        weighting=weighting, **args.recipe,
    )  # fmt: skip
    found = evaluate_model(model, MultiTaskDataset(test), device=args.device)
    return {name: found[f"{name}_{metric}"] for name, metric in SCORES.items()}


def train_heads(
    args: argparse.Namespace,
    encoder: ModelEngine,
    data: dict[str, TextDataset],
    seed: int,
    name: str,
    **settings: object,
) -> ModelEngine:
    """Train an encoder with a head for each task by the recipe, but for what is of classes alone.

    Args:
        args: of the benchmark.
        encoder: gives a vector for each token.
        data: of each task.
        seed: of heads and order.
        name: of the run.
        **settings: of the Trainer; they go before the recipe's.
    """
    torch.manual_seed(seed)
    recipe = {key: value for key, value in RECIPE.items() if key != "label_smoothing"}
    trainer = Trainer(
        MultiHead.around(encoder), MultiTaskDataset(data, seed=seed), seed=seed,
        device=args.device, loggers=(), run_dir=args.output / name, **{**recipe, **settings},
    )  # fmt: skip
    trainer.fit()
    return trainer.model


def label(weighting: str | dict) -> str:
    """Return a weighting's name, with its settings."""
    if isinstance(weighting, str):
        return weighting
    return " ".join(str(value) for value in weighting.values())


def describe(name: str, runs: list[dict[str, float]], millions: float, seconds: float) -> dict:
    """Return a row of the table."""
    named = {f"{task}, {SCORES[task]}": 100 * fmean(run[task] for run in runs) for task in runs[0]}
    return {
        "models": name, **named, "mean": spread_of([fmean(run.values()) for run in runs]),
        "million weights": millions, "minutes": seconds / 60,
    }  # fmt: skip
