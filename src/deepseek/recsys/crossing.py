"""Models that multiply features with each other and send them through hidden layers, too.

Papers: Guo et al. 2017, "DeepFM" (arXiv 1703.04247); Wang et al. 2017, "Deep & Cross Network"
(arXiv 1708.05123), eq. 3; Wang et al. 2021, "DCN V2" (arXiv 2008.13535), eq. 1, 3 and 4.
Departure: a mixture of low-rank layers has a gate without a constant, whose weights are a softmax.

Shapes: B batch, W numbers that the features of a sample are, K experts, R rank.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.models.checks import check_choice, check_positive, check_share
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel
from deepseek.recsys.first_models import (
    LinearTerms,
    check_one_label,
    checked_widths,
    hidden_layers,
    sum_of_pairs,
)

STRUCTURES = ("parallel", "stacked")


class CrossLayers(nn.Module):
    """The crosses of 2017: `x = x0 (x . w) + b + x`, a vector of weights for each layer.

    Args:
        width: W.
        num_layers: products of up to `num_layers + 1` features are made.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(num_layers, width))
        self.biases = nn.Parameter(torch.zeros(num_layers, width))
        nn.init.normal_(self.weights, std=width**-0.5)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """Return features and their products."""
        first = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = first * (x @ weight)[:, None] + bias + x
        return x


class MatrixCrossLayers(nn.Module):
    """The crosses of 2021: `x = x0 * (W x + b) + x`, a matrix of weights for each layer.

    Args:
        width: W.
        num_layers: products of up to `num_layers + 1` features are made.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """Return features and their products."""
        first = x
        for layer in self.layers:
            x = first * layer(x) + x
        return x


class LowRankCross(nn.Module):
    """One layer of crosses by matrices of low rank, mixed by a gate.

    `x = sum_k gate_k(x) x0 * (U_k tanh(C_k tanh(V_k x)) + b) + x`

    Args:
        width: W.
        rank: R.
        num_experts: K.
    """

    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(num_experts, rank, width))
        self.middle = nn.Parameter(torch.empty(num_experts, rank, rank))
        self.up = nn.Parameter(torch.empty(num_experts, width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, num_experts, bias=False)
        for matrices in (self.down, self.middle, self.up):
            for matrix in matrices:
                nn.init.xavier_normal_(matrix)

    def forward(self, first: Float[Tensor, "B W"], x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """Return the next `x`."""
        narrow = torch.einsum("krw,bw->bkr", self.down, x).tanh()
        narrow = torch.einsum("kqr,bkr->bkq", self.middle, narrow).tanh()
        wide = torch.einsum("kwr,bkr->bkw", self.up, narrow) + self.bias
        shares = self.gate(x).softmax(1)
        return first * torch.einsum("bk,bkw->bw", shares, wide) + x


class MixedCrossLayers(nn.Module):
    """Low-rank crosses one after another; arguments as `LowRankCross`."""

    def __init__(self, width: int, num_layers: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            LowRankCross(width, rank, num_experts) for _ in range(num_layers)
        )

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """Return features and their products."""
        first = x
        for layer in self.layers:
            x = layer(first, x)
        return x


class DeepFM(TableModel):
    """A factorisation machine and hidden layers on the same vectors; their logits are added.

    Args:
        embedding_dim: numbers of a vector.
        hidden_dims: widths of the hidden layers.
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
        """Make weights, vectors and layers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.linear = LinearTerms(layout)
        self.embedder = Embedder(layout, config["embedding_dim"])
        widths = [self.embedder.num_fields * config["embedding_dim"], *config["hidden_dims"]]
        self.layers = hidden_layers(widths, config["dropout"])
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        vectors = self.embedder(batch)
        deep = self.output(self.layers(vectors.flatten(1)))[:, 0]
        return self.linear(batch) + sum_of_pairs(vectors) + deep


class DeepCrossNetwork(TableModel):
    """Crosses of 2017 and hidden layers beside them, under one output.

    Args:
        embedding_dim: numbers of a vector.
        num_layers: crosses.
        hidden_dims: widths of the hidden layers; none: crosses alone.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        num_layers: int = 2,
        hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim, num_layers=num_layers)
        check_share(dropout=dropout)
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim, num_layers=num_layers,
            hidden_dims=checked_widths("hidden_dims", hidden_dims), dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors, crosses and layers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        width = self.embedder.width
        self.crosses = CrossLayers(width, config["num_layers"])
        self.layers = hidden_layers([width, *config["hidden_dims"]], config["dropout"])
        beside = config["hidden_dims"][-1] if config["hidden_dims"] else 0
        self.output = nn.Linear(width + beside, 1)

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        x = self.embedder.flat(batch)
        parts = [self.crosses(x)]
        if len(self.layers):
            parts.append(self.layers(x))
        return self.output(torch.cat(parts, 1))[:, 0]


class DeepCrossNetworkV2(TableModel):
    """Crosses of 2021 with hidden layers beside or behind them.

    Args:
        embedding_dim: numbers of a vector.
        num_layers: crosses.
        rank: R, of matrices in a mixture; `None`: one full matrix for each cross.
        num_experts: K, of the mixture.
        structure: "parallel": hidden layers take the features; "stacked": what the crosses return.
        hidden_dims: widths of the hidden layers; none: crosses alone.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        num_layers: int = 2,
        rank: int | None = None,
        num_experts: int = 4,
        structure: str = "parallel",
        hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(
            embedding_dim=embedding_dim, num_layers=num_layers, num_experts=num_experts,
            rank=1 if rank is None else rank,
        )  # fmt: skip
        check_share(dropout=dropout)
        check_choice(structure=(structure, STRUCTURES))
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim, num_layers=num_layers, rank=rank,
            num_experts=num_experts, structure=structure,
            hidden_dims=checked_widths("hidden_dims", hidden_dims), dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors, crosses and layers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        width, depth, rank = self.embedder.width, config["num_layers"], config["rank"]
        if rank is None:
            self.crosses = MatrixCrossLayers(width, depth)
        else:
            self.crosses = MixedCrossLayers(width, depth, rank, config["num_experts"])
        widths = [width, *config["hidden_dims"]]
        self.layers = hidden_layers(widths, config["dropout"])
        self.is_stacked = config["structure"] == "stacked" or len(widths) == 1
        self.output = nn.Linear(widths[-1] + (0 if self.is_stacked else width), 1)

    def forward(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return the logits."""
        x = self.embedder.flat(batch)
        crossed = self.crosses(x)
        if self.is_stacked:
            return self.output(self.layers(crossed))[:, 0]
        return self.output(torch.cat([crossed, self.layers(x)], 1))[:, 0]


DEEPFM = Architecture(DeepFM)
DCN = Architecture(DeepCrossNetwork)
DCN_V2 = Architecture(DeepCrossNetworkV2)
