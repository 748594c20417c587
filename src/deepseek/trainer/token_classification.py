"""A class for every token: parts of speech, names of persons and places.

Shapes: B batch, T tokens, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.trainer.metrics import MacroF1, Mean, Metric, count_by_class
from deepseek.trainer.task import (
    IGNORE_INDEX,
    Batch,
    Task,
    count_targets,
    mean_of_each,
    sum_over_tokens,
)

Entity = tuple[int, int, int, str]
"""Sequence, first word, word after the last, kind."""


class TokenClassificationTask(Task):
    """One class per token: cross-entropy on logits (B, T, C) with labels (B, T).

    A label of -100 is not counted: padding, and the tokens of a word after its first.

    Args:
        class_names: of the classes. Where they are of the form `O`, `B-KIND`, `I-KIND`, the F1
            score of whole entities is measured too (Tjong Kim Sang & De Meulder 2003, CoNLL: an
            entity counts if its kind and both ends are right).
        label_smoothing: as in `ClassificationTask`.
    """

    higher_is_better = True

    def __init__(self, class_names: Sequence[str], label_smoothing: float = 0.0) -> None:
        self.class_names = tuple(class_names)
        self.label_smoothing = label_smoothing
        self._has_entities = has_entities(class_names)
        self.monitor = "val_entity_f1" if self._has_entities else "val_accuracy"

    def count_items(self, batch: Batch) -> int:
        """Return the number of tokens that have a label."""
        return count_targets(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over tokens, in float32."""
        return sum_over_tokens(outputs, batch, self.label_smoothing)

    def new_metrics(self) -> dict[str, Metric]:
        """Loss, accuracy and macro-F1 of tokens; the F1 score of entities where there are any."""
        metrics: dict[str, Metric] = {
            "loss": Mean(),
            "accuracy": Mean(),
            "macro_f1": MacroF1(len(self.class_names)),
        }
        if self._has_entities:
            metrics["entity_f1"] = MacroF1(1)
        return metrics

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        counted = batch["targets"] != IGNORE_INDEX
        logits, labels = outputs.float()[counted], batch["targets"][counted]
        predicted, count = logits.argmax(-1), len(labels)
        metrics["loss"].update(F.cross_entropy(logits, labels, reduction="sum"), count)
        metrics["accuracy"].update((predicted == labels).sum(), count)
        by_class = count_by_class(predicted, labels, len(self.class_names))
        metrics["macro_f1"].update(by_class, count)
        if "entity_f1" in metrics:
            sequences = counted.nonzero()[:, 0].tolist()
            found = find_entities(predicted.tolist(), sequences, self.class_names)
            actual = find_entities(labels.tolist(), sequences, self.class_names)
            sums = [[len(found & actual)], [len(found)], [len(actual)]]
            metrics["entity_f1"].update(torch.tensor(sums), len(actual))

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (B,), the mean over the labelled tokens of each sequence."""
        return {"loss": mean_of_each(outputs, batch)}


def has_entities(class_names: Sequence[str]) -> bool:
    """Return whether classes are of the form `O`, `B-KIND`, `I-KIND`."""
    return "O" in class_names and all(
        name == "O" or name.startswith(("B-", "I-")) for name in class_names
    )


def find_entities(
    labels: Sequence[int], sequences: Sequence[int], class_names: Sequence[str]
) -> set[Entity]:
    """Return the entities in labelled words that follow each other.

    An `I-KIND` that follows nothing of its kind begins an entity, as in CoNLL's own script.

    Args:
        labels: class number of each word.
        sequences: number of the sequence that each word is of.
        class_names: of the classes.
    """
    found: set[Entity] = set()
    begin, sequence, kind = 0, -1, ""
    for place, (label, here) in enumerate(
        zip([*labels, class_names.index("O")], [*sequences, -1], strict=True)
    ):
        mark, _, own = class_names[label].partition("-")
        if kind and (here != sequence or own != kind or mark == "B"):
            found.add((sequence, begin, place, kind))
            kind = ""
        if own and not kind:
            begin, sequence, kind = place, here, own
    return found


def make_task(spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task for what a data set holds."""
    return TokenClassificationTask(spec.class_names, label_smoothing)
