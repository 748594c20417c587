"""Metrics that the loop itself needs: sums on the device, read once per evaluation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Metric(ABC):
    """A number that follows from sums over items; on several ranks the sums are added."""

    @abstractmethod
    def update(self, total: Tensor, count: int) -> None:
        """Add sums over `count` items."""

    @abstractmethod
    def compute(self) -> float:
        """Return the number; NaN without items. Waits for the device."""

    @abstractmethod
    def sums(self) -> list[float]:
        """Return all sums, as many on every rank. Waits for the device."""

    @abstractmethod
    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace the sums by those of all ranks."""


class Mean(Metric):
    """A mean over items, kept as sum and count on the device: no wait until `compute`."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, total: Tensor, count: int) -> None:
        """Add a sum over `count` items."""
        self.total = self.total + total.detach()
        self.count += count

    def compute(self) -> float:
        """Return the mean; NaN without items. Waits for the device."""
        return float(self.total) / self.count if self.count else math.nan

    def sums(self) -> list[float]:
        """Return sum and count."""
        return [float(self.total), float(self.count)]

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace sum and count."""
        self.total, self.count = sums[0], round(sums[1])

    def state_dict(self) -> dict:
        """Return sum and count as numbers that JSON keeps exactly."""
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Take the state back."""
        # float32, as on the device: continued sums must round as uninterrupted ones do
        self.total = torch.tensor(state["total"], dtype=torch.float32)
        self.count = state["count"]


class Perplexity(Metric):
    """`exp` of the mean loss of a token, in nats."""

    def __init__(self) -> None:
        self._loss = Mean()

    def update(self, total: Tensor, count: int) -> None:
        """Add the loss summed over `count` tokens."""
        self._loss.update(total, count)

    def compute(self) -> float:
        """Return the perplexity; infinite where a double cannot hold it."""
        loss = self._loss.compute()
        return math.exp(loss) if not loss > 700 else math.inf

    def sums(self) -> list[float]:
        """Return loss and count."""
        return self._loss.sums()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace loss and count."""
        self._loss.take_sums(sums)


class MacroF1(Metric):
    """The F1 score of each class, averaged over the classes that occur or were predicted.

    `F1 = 2 hits / (predicted + actual)`.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.total: Tensor = torch.zeros(3, num_classes, dtype=torch.int64)

    def update(self, total: Tensor, count: int) -> None:
        """Add hits, predictions and items of each class, (3, C)."""
        self.total = self.total.to(total.device) + total

    def compute(self) -> float:
        """Return the score in 0..1."""
        hits, predicted, actual = self.total.double().cpu()
        occurs = predicted + actual > 0
        scores = 2 * hits[occurs] / (predicted + actual)[occurs]
        return float(scores.mean()) if len(scores) else math.nan

    def sums(self) -> list[float]:
        """Return the counts of each class."""
        return self.total.flatten().double().tolist()

    def take_sums(self, sums: Sequence[float]) -> None:
        """Replace the counts."""
        self.total = torch.tensor(sums, dtype=torch.float64).round().long().view_as(self.total)


def count_correct(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Return how many of `labels` (B,) are among the `top` largest of `logits` (B, C)."""
    if top == 1:
        return (logits.argmax(-1) == labels).sum()
    return (logits.topk(top, dim=-1).indices == labels[:, None]).any(-1).sum()


def count_by_class(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return hits, predictions and items of each class, int64 (3, C), for class numbers (N,)."""
    counts = torch.zeros(3, num_classes, dtype=torch.int64, device=labels.device)
    ones = torch.ones_like(labels)
    counts[0].index_add_(0, labels, (predicted == labels).to(labels.dtype))
    counts[1].index_add_(0, predicted, ones)
    counts[2].index_add_(0, labels, ones)
    return counts
