"""DIN: a history counts by how much each of its items has to do with the candidate.

Paper: Zhou et al. 2018, "Deep interest network" (arXiv 1706.06978), eq. 3 to 5. Departures: the
attention unit sees the difference and the product of the elements in place of the outer product;
means and variances of Dice are taken over filled places alone, where there are two or more.

Shapes: B batch, L history, E numbers of a vector, N rows, C channels.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel
from deepseek.recsys.first_models import check_one_label, checked_widths

MOMENTUM = 0.1
EPSILON = 1e-8


class Dice(nn.Module):
    """An activation that bends where the values of a channel lie.

    `y = p x + (1 - p) slope x`, `p = sigmoid((x - mean) / sqrt(variance))`; training takes those of
    the batch, evaluation running ones. One row has no variance: it is trained with running ones,
    which it does not change.

    Args:
        channels: C.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(
        self, x: Float[Tensor, "N C"], counts: Bool[Tensor, "N"] | None = None
    ) -> Float[Tensor, "N C"]:
        """Return the values; `counts` says which rows are there."""
        mean, variance = self.mean, self.variance
        if self.training:
            own_mean, own_variance, count = _moments(x, counts)
            has_moments = count > 1  # a tensor: to ask for it would be a sync
            mean = torch.where(has_moments, own_mean, mean.to(own_mean.dtype))
            variance = torch.where(has_moments, own_variance, variance.to(own_variance.dtype))
            with torch.no_grad():
                rate = MOMENTUM * has_moments.to(self.mean.dtype)
                self.mean.lerp_(own_mean.detach().to(self.mean.dtype), rate)
                self.variance.lerp_(own_variance.detach().to(self.variance.dtype), rate)
        share = ((x - mean) * (variance + EPSILON).rsqrt()).sigmoid()
        return share * x + (1 - share) * self.slope * x


def _moments(x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance, and of how many rows."""
    weights = x.new_ones(len(x), 1) if counts is None else counts[:, None].to(x.dtype)
    count = weights.sum()
    total = count.clamp(min=1)
    mean = (x * weights).sum(0) / total
    return mean, ((x - mean).square() * weights).sum(0) / total, count


class DiceLayers(nn.Module):
    """Linear layers from the first width to the last, each with Dice, and one output."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.dices = nn.ModuleList(Dice(width) for width in widths[1:])
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, x: Float[Tensor, "N W"], counts: Tensor | None = None) -> Float[Tensor, "N"]:
        """Return a number for each row."""
        for linear, dice in zip(self.linears, self.dices, strict=True):
            x = dice(linear(x), counts)
        return self.output(x)[:, 0]


class HistoryAttention(nn.Module):
    """The sum of the vectors of a history, each by a weight that it has with the candidate.

    Weights are not made to add up to 1: how strong an interest is counts, too.

    Args:
        embedding_dim: E.
        hidden_dims: widths of the hidden layers that make the weight.
    """

    def __init__(self, embedding_dim: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.layers = DiceLayers([4 * embedding_dim, *hidden_dims])

    def forward(
        self,
        candidate: Float[Tensor, "B E"],
        history: Float[Tensor, "B L E"],
        is_filled: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B E"]:
        """Return the sum; zeros where the history is empty."""
        query = candidate[:, None].expand_as(history)
        pairs = torch.cat([query, history, query - history, query * history], 2)
        weights = self.layers(pairs.flatten(0, 1), is_filled.flatten()).view_as(is_filled)
        return torch.einsum("bl,ble->be", weights * is_filled, history)


class DeepInterestNetwork(TableModel):
    """Attention on each history that shares ids with a candidate; then hidden layers with Dice.

    A history is a `sequence` that `shares` a sparse feature, the candidate; other sequences are the
    mean of their vectors.

    Args:
        embedding_dim: E.
        attention_dims: hidden widths of the attention.
        hidden_dims: widths of the hidden layers behind it.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.

    Raises:
        ConfigError: no sequence shares a feature.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        attention_dims: Sequence[int] = (36,),
        hidden_dims: Sequence[int] = (64, 32),
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim)
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim,
            attention_dims=checked_widths("attention_dims", attention_dims),
            hidden_dims=checked_widths("hidden_dims", hidden_dims),
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors, attention and layers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.candidates = histories(layout)
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        self.attention = nn.ModuleList(
            HistoryAttention(config["embedding_dim"], config["attention_dims"])
            for _ in self.candidates
        )
        self.layers = DiceLayers([self.embedder.width, *config["hidden_dims"]])

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        embedder, layout = self.embedder, self.embedder.layout
        sparse = embedder.sparse(batch)
        parts = [sparse.flatten(1)]
        attention = dict(zip(self.candidates, self.attention, strict=True))
        for name in layout.sequences:
            if name in attention:
                history, is_filled = embedder.sequence(batch, name)
                candidate = sparse[:, self.candidates[name]]
                parts.append(attention[name](candidate, history, is_filled))
            else:
                parts.append(embedder.pooled(batch, name))
        if layout.numbers:
            parts.append(embedder.numbers(batch))
        return self.layers(torch.cat(parts, 1))


def histories(layout: FeatureLayout) -> dict[str, int]:
    """Return the sequences that share a sparse feature -> the column of that in `sparse`.

    Raises:
        ConfigError: there are none.
    """
    columns = {name: column for column, name in enumerate(layout.ids)}
    found = {
        name: columns[layout.shares[name]]
        for name in layout.sequences
        if layout.shares.get(name) in columns
    }
    if not found:
        raise ConfigError(
            "no sequence shares the ids of a candidate",
            fix="give the history of items `shares: item_id` in the feature spec",
        )
    return found


DIN = Architecture(DeepInterestNetwork)
