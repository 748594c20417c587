"""Tasks near to a benchmark's, which an encoder learns together before: Twitter, FiQA, SST-2.

Sentences that are nearly one of the benchmark's are left out.
"""

import argparse

import numpy as np

from deepseek.datasets.near_duplicates import find_near_duplicates
from deepseek.finance.datasets import Sentences, read_fiqa, read_twitter_news
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from finance_models import as_data
from finance_multitask import part_of, train_heads


def learn_first(
    args: argparse.Namespace, engine: ModelEngine, tokenizer: object, texts: list[str]
) -> ModelEngine:
    """Return an encoder after its first tasks, without their heads.

    Args:
        args: of the benchmark.
        engine: the encoder before.
        tokenizer: its own.
        texts: of the benchmark.
    """
    data = {
        name: as_data(args, without_known(own, texts), tokenizer, f"first_{name}")
        for name, own in read_first(args).items()
    }
    encoder = with_outputs(engine, "hidden")
    train_heads(args, encoder, data, args.seed, "first", epochs=args.first_epochs)
    return encoder


def read_first(args: argparse.Namespace) -> dict[str, Sentences]:
    """Return the training sentences of each first task."""
    lines = (args.data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    return {
        "twitter": read_twitter_news(args.data / "twitter_financial_news" / "sent_train.csv"),
        "fiqa": read_fiqa(*sorted((args.data / "fiqa_absa").glob("task1_*_train.json"))),
        "sst2": Sentences(texts, tuple(map(int, labels)), ("negative", "positive"), "unknown"),
    }


def without_known(sentences: Sentences, texts: list[str]) -> Sentences:
    """Return the sentences that are not nearly one of the texts."""
    count = len(sentences)
    pairs = find_near_duplicates([*sentences.texts, *texts])
    known = {pair.first for pair in pairs if pair.first < count <= pair.second}
    print(f"{len(known)} of {count} sentences left out: nearly the benchmark's own")
    return part_of(sentences, np.array([at not in known for at in range(count)]))
