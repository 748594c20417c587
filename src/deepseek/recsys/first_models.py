"""The models that every other one has to beat: logistic regression, FM, a perceptron.

Paper: Rendle 2010, "Factorization machines" (ICDM), eq. 1 and lemma 3.1. Departure: one column of
`sparse` is one field, whatever its id; sequences count as the mean of their vectors.

Shapes: B batch, F fields, E numbers of a vector, T labels.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, check_share
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel


class LinearTerms(nn.Module):
    """A weight for each id and number, and a constant: what a logistic regression adds up.

    Args:
        layout: what a batch holds.
    """

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        self.embedder = Embedder(layout, 1, scale=1e-4)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the sum."""
        return self.embedder(batch).sum((1, 2)) + self.bias


class LogisticRegression(TableModel):
    """A weight for each id and each number.

    Args:
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.
    """

    def __init__(self, layout: Mapping | None = None, num_classes: int | None = None) -> None:
        super().__init__(layout, num_classes)

    def build(self, layout: FeatureLayout) -> None:
        """Make the weights."""
        check_one_label(layout, type(self).__name__)
        self.linear = LinearTerms(layout)

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        return self.linear(batch)


class FactorizationMachine(TableModel):
    """A logistic regression, and the products of the vectors of all pairs of fields.

    Args:
        embedding_dim: E.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim)
        super().__init__(layout, num_classes, embedding_dim=embedding_dim)

    def build(self, layout: FeatureLayout) -> None:
        """Make weights and vectors."""
        check_one_label(layout, type(self).__name__)
        self.linear = LinearTerms(layout)
        self.embedder = Embedder(layout, self.config["embedding_dim"])

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        return self.linear(batch) + sum_of_pairs(self.embedder(batch))


def sum_of_pairs(vectors: Float[Tensor, "B F E"]) -> Float[Tensor, "B"]:
    """Return the sum of the products of all pairs of fields."""
    return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)


class MultiLayerPerceptron(TableModel):
    """Vectors and numbers side by side through hidden layers.

    Args:
        embedding_dim: E.
        hidden_dims: widths of the layers.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim)
        check_share(dropout=dropout)
        widths = checked_widths("hidden_dims", hidden_dims)
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim, hidden_dims=widths, dropout=dropout
        )

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors and layers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        widths = [self.embedder.width, *config["hidden_dims"]]
        self.layers = hidden_layers(widths, config["dropout"])
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        return self.output(self.layers(self.embedder.flat(batch)))[:, 0]


def hidden_layers(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers from the first width to the last, each with a ReLU and dropout."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def checked_widths(name: str, widths: Sequence[int]) -> list[int]:
    """Return the widths of hidden layers as a list.

    Raises:
        ConfigError: one is not above 0.
    """
    check_positive(**{f"{name}[{i}]": width for i, width in enumerate(widths)})
    return list(widths)


def check_one_label(layout: FeatureLayout, model: str) -> None:
    """Refuse data with several labels.

    Raises:
        ConfigError: there are several.
    """
    if len(layout.labels) != 1:
        raise ConfigError(
            f"{model} has one output, the data have the labels {', '.join(layout.labels)}",
            fix="take labels out: spec.without(...), or choose a model of several tasks",
        )


LOGISTIC_REGRESSION = Architecture(LogisticRegression)
FACTORIZATION_MACHINE = Architecture(FactorizationMachine)
MLP = Architecture(MultiLayerPerceptron)
