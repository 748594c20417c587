"""What a batch means: loss as (sum, count), metrics and predictions.

Shapes: B batch, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.registry import Registry
from deepseek.trainer.metrics import (
    MacroF1,
    Mean,
    Metric,
    Perplexity,
    count_by_class,
    count_correct,
)

Batch = Mapping[str, Tensor]
IGNORE_INDEX = -100


class Task(ABC):
    """What a batch means for training and evaluation. Subclass it for a new kind of target."""

    monitor: str
    """The metric that says which model is best."""
    higher_is_better: bool
    takes_divided_logits = False
    """Whether `loss` may be given logits that are divided between ranks by classes (a DTensor)."""
    takes_parts = True
    """Whether `loss` may be given some tokens of a batch, with the inputs of all or of none."""

    min_score_metric: str | None = None
    """The metric that says from which score on something found is reported; the model keeps it."""

    def count_items(self, batch: Batch) -> int:
        """Return how many items the loss of this batch is a mean over. No device wait."""
        return len(batch["targets"])

    def place(self, device: torch.device) -> None:
        """Move what `loss` needs beside the batch; called once, before the first step."""
        del device

    def prepare(self, batch: Batch) -> Batch:
        """Return a micro-batch, still on the host, with all that `loss` looks for."""
        return batch

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss *summed* over the items of the batch, as a scalar on the device."""

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]:
        """Return empty accumulators by name, without the `val_` prefix."""

    @abstractmethod
    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch to the accumulators."""

    @abstractmethod
    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return what evaluation keeps per sample; first dim B each."""


class ClassificationTask(Task):
    """One class per sample: cross-entropy on logits (B, C) with labels (B,).

    Args:
        num_classes: C.
        label_smoothing: probability spread over all classes (Szegedy et al. 2015, arXiv
            1512.00567, section 7); in training only, `val_loss` is plain cross-entropy.
        class_weights: what a sample of each class counts in the loss of training, (C,); `None`: 1.
    """

    monitor = "val_accuracy"
    higher_is_better = True

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Float[Tensor, "C"] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def place(self, device: torch.device) -> None:
        """Move the weights of classes."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the summed cross-entropy, in float32 whatever the logits are."""
        weights = self.class_weights
        return F.cross_entropy(
            outputs.float(),
            batch["targets"],
            weight=None if weights is None else weights.to(outputs.device),
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def new_metrics(self) -> dict[str, Metric]:
        """Loss, accuracy and macro-F1; top-5 accuracy from ten classes up."""
        names = ["loss", "accuracy"] + (["top5_accuracy"] if self.num_classes >= 10 else [])
        return {**{name: Mean() for name in names}, "macro_f1": MacroF1(self.num_classes)}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        labels, count = batch["targets"], len(batch["targets"])
        logits = outputs.float()
        metrics["loss"].update(F.cross_entropy(logits, labels, reduction="sum"), count)
        metrics["accuracy"].update(count_correct(logits, labels), count)
        by_class = count_by_class(logits.argmax(-1), labels, self.num_classes)
        metrics["macro_f1"].update(by_class, count)
        if "top5_accuracy" in metrics:
            metrics["top5_accuracy"].update(count_correct(logits, labels, top=5), count)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `probs` (B, C) float32, `targets` (B,), `loss` (B,)."""
        logits = outputs.float()
        return {
            "probs": torch.softmax(logits, -1),
            "targets": batch["targets"],
            "loss": F.cross_entropy(logits, batch["targets"], reduction="none"),
        }


class LanguageModellingTask(Task):
    """A token at every position: cross-entropy on logits (B, T, V) with labels (B, T).

    The labels are the next tokens, or, for masked language modelling, those that were hidden.

    A target of -100 is not counted, neither in the loss nor as an item: sequences of different
    lengths weigh by their tokens.

    Args:
        label_smoothing: as in `ClassificationTask`.
    """

    monitor = "val_loss"
    higher_is_better = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        # torch's loss_parallel has no label smoothing
        self.takes_divided_logits = label_smoothing == 0.0

    def count_items(self, batch: Batch) -> int:
        """Return the number of tokens that have a target."""
        return count_targets(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy summed over tokens, in float32."""
        return sum_over_tokens(outputs, batch, self.label_smoothing)

    def new_metrics(self) -> dict[str, Metric]:
        """Loss (nats per token), its perplexity, and how often the most probable was right."""
        return {"loss": Mean(), "perplexity": Perplexity(), "accuracy": Mean()}

    def update_metrics(self, metrics: dict[str, Metric], outputs: Tensor, batch: Batch) -> None:
        """Add a batch."""
        targets = batch["targets"]
        counted = targets != IGNORE_INDEX
        num_tokens = int(counted.sum())
        loss = sum_over_tokens(outputs, batch)
        metrics["loss"].update(loss, num_tokens)
        metrics["perplexity"].update(loss, num_tokens)
        metrics["accuracy"].update(((outputs.argmax(-1) == targets) & counted).sum(), num_tokens)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (B,), the mean over the tokens of each sequence."""
        return {"loss": mean_of_each(outputs, batch)}


def count_targets(batch: Batch) -> int:
    """Return the number of tokens whose label is not -100."""
    return int((batch["targets"] != IGNORE_INDEX).sum())


def sum_over_tokens(outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of logits (B, T, C), summed over labelled tokens, in float32."""
    return F.cross_entropy(
        outputs.float().flatten(0, 1),
        batch["targets"].flatten(),
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def mean_of_each(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the labelled tokens of each sequence, (B,)."""
    targets = batch["targets"]
    losses = F.cross_entropy(
        outputs.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORE_INDEX
    )
    return losses.sum(1) / (targets != IGNORE_INDEX).sum(1).clamp(min=1)


def _language_modelling(spec: DataSpec, label_smoothing: float) -> Task:
    return LanguageModellingTask(label_smoothing)


def _classification(spec: DataSpec, label_smoothing: float) -> Task:
    return ClassificationTask(spec.num_classes, label_smoothing)


TASKS: Registry = Registry(
    "task",
    {
        "binary": "deepseek.trainer.binary:make_task",
        "classification": "deepseek.trainer.task:_classification",
        "detection": "deepseek.medical.detection:make_task",
        "in_batch": "deepseek.recsys.retrieval_tasks:make_in_batch_task",
        "language_modelling": "deepseek.trainer.task:_language_modelling",
        "masked_language_modelling": "deepseek.trainer.task:_language_modelling",
        "multi": "deepseek.trainer.multi_task:make_task",
        "next_item": "deepseek.recsys.retrieval_tasks:make_next_item_task",
        "regression": "deepseek.trainer.regression:make_task",
        "segmentation": "deepseek.trainer.segmentation:segmentation",
        "sequence_classification": "deepseek.trainer.task:_classification",
        "sequence_regression": "deepseek.trainer.regression:make_task",
        "token_classification": "deepseek.trainer.token_classification:make_task",
    },
)


def resolve_task(task: str | Task, spec: DataSpec, label_smoothing: float) -> Task:
    """Return the task that was given, named, or follows from what the data hold.

    Raises:
        ConfigError: `"auto"` cannot tell what the data are for.
    """
    if isinstance(task, Task):
        return task
    name = spec.task if task == "auto" else task
    if name not in TASKS:
        raise ConfigError(
            f"no task is known for data of kind {name!r}",
            fix=f"pass task= (one of {', '.join(TASKS.names())}, or your own Task)",
        )
    return TASKS.get(name)(spec, label_smoothing)
