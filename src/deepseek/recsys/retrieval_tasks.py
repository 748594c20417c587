"""What models that find items among all learn: each positive against items it did not meet.

In evaluation they are judged as all others, by the labels of the rows: `BinaryTask`.

Papers: Yi et al. 2019, "Sampling-bias-corrected neural modeling" (RecSys), eq. 4; Kang & McAuley
2018, "Self-attentive sequential recommendation" (arXiv 1808.09781), eq. 7.

Shapes: B batch, L sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.embedder import FeatureLayout
from deepseek.recsys.interest_network import histories
from deepseek.trainer.binary import BinaryTask
from deepseek.trainer.task import Batch


class InBatchTask(BinaryTask):
    """Every positive row against the items of the other rows: cross-entropy of logits (B, B).

    Row i is a user, column j the item of row j. Rows of a label that is not 1 lend their items
    only.
    """

    def count_items(self, batch: Batch) -> int:
        """Return the number of positive rows."""
        return int((batch["targets"] == 1).sum())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss summed over positive rows, in float32."""
        if outputs.ndim == 1:  # of evaluation
            return super().loss(outputs, batch)
        own = torch.arange(len(outputs), device=outputs.device)
        losses = F.cross_entropy(outputs.float(), own, reduction="none")
        return (losses * (batch["targets"] == 1)).sum()


class NextItemTask(BinaryTask):
    """At each place of a history the next item against a drawn one: logits (B, L, 2).

    The next item of the last place is the candidate of the row, where its label is 1.

    Args:
        sequence: name of the history.
    """

    def __init__(self, sequence: str) -> None:
        super().__init__()
        self.sequence = sequence

    def count_items(self, batch: Batch) -> int:
        """Return the number of places with a next item."""
        return int(self._has_next(batch).sum())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss summed over places, in float32."""
        if outputs.ndim == 1:  # of evaluation
            return super().loss(outputs, batch)
        right, drawn = outputs.float().unbind(2)
        losses = F.softplus(-right) + F.softplus(drawn)
        return (losses * self._has_next(batch)).sum()

    def _has_next(self, batch: Batch) -> Tensor:
        """Return which places have a next item, bool (B, L)."""
        lengths = batch[f"length.{self.sequence}"][:, None]
        places = torch.arange(batch[f"sequence.{self.sequence}"].shape[1], device=lengths.device)
        is_positive = (batch["targets"] == 1)[:, None]
        return (places < lengths - 1) | ((places == lengths - 1) & is_positive)


def make_in_batch_task(spec: DataSpec, label_smoothing: float) -> InBatchTask:
    """Return the task of a table with one label."""
    del label_smoothing
    _check_binary(spec)
    return InBatchTask()


def make_next_item_task(spec: DataSpec, label_smoothing: float) -> NextItemTask:
    """Return the task of a table with one label and one history."""
    del label_smoothing
    features = _check_binary(spec)
    return NextItemTask(only_history(FeatureLayout.of(features))[0])


def only_history(layout: FeatureLayout) -> tuple[str, int]:
    """Return the history of items and the column of the candidate in `sparse`.

    Raises:
        ConfigError: there is not exactly one.
    """
    found = histories(layout)
    if len(found) > 1:
        raise ConfigError(
            f"there are several histories: {', '.join(found)}", fix="leave one in the feature spec"
        )
    return next(iter(found.items()))


def _check_binary(spec: DataSpec):
    if spec.task != "binary" or spec.features is None:
        raise ConfigError(
            f"items are learnt from a table with one label of yes or no, not from {spec.task!r}",
            fix="give an InteractionDataset with one such label",
        )
    return spec.features
