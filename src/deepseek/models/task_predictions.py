"""What a model of several tasks, or of numbers, says about samples.

Shapes: B batch, T tokens, K outputs of a head.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.prediction import Prediction, name_probs
from deepseek.models.text_batches import tokenizer_of

TaskPrediction = Prediction | float | list[float] | list[str]
"""A class, a number, several numbers, or the class of each token between those of the frame."""


def name_outputs(
    outputs: Mapping[str, Tensor], inputs: Tensor, spec: DataSpec, top_k: int
) -> list[dict[str, TaskPrediction]]:
    """Return what each task says of each sample.

    Args:
        outputs: of a `MultiHead`, float32, on the CPU.
        inputs: of the model, (B, ...).
        spec: of the model.
        top_k: number of classes in `Prediction.top`.
    """
    found: list[dict[str, TaskPrediction]] = [{} for _ in range(len(inputs))]
    for name, values in outputs.items():
        own = spec.tasks[name]
        if own.task == "token_classification":
            named = _name_tokens(values, inputs, own.class_names, spec)
        elif own.class_names:
            named = name_probs(values.softmax(-1), own.class_names, top_k)
        else:
            named = numbers_of(values)
        for row, each in zip(found, named, strict=True):
            row[name] = each
    return found


def numbers_of(values: Tensor) -> list[float | list[float]]:
    """Return a number for each sample of (B, 1), or the numbers of (B, K)."""
    return values[:, 0].tolist() if values.shape[1] == 1 else values.tolist()


def not_one_head(heads: Iterable[str]) -> ConfigError:
    """Return the error of asking a model of several tasks for one set of classes."""
    return ConfigError(
        f"the model has the heads {', '.join(heads)}, and one set of classes was asked for",
        fix="ask it by engine.predict or deepseek predict",
    )


def _name_tokens(
    values: Tensor, tokens: Tensor, class_names: tuple[str, ...], spec: DataSpec
) -> list[list[str]]:
    before, after = tokenizer_of(spec.tokenizer or "").frame if spec.tokenizer else ((), ())
    is_token = torch.ones_like(tokens, dtype=torch.bool)
    if spec.pad_token is not None:
        is_token = tokens != spec.pad_token
    classes = values.argmax(-1)
    found = []
    for row, known in zip(classes, is_token.cpu(), strict=True):
        labels = row[: int(known.sum())].tolist()
        found.append([class_names[c] for c in labels[len(before) : len(labels) - len(after)]])
    return found
