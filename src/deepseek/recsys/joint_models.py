"""Models of several labels: ESMM, MMoE, PLE.

Papers: Ma et al. 2018, "Entire space multi-task model" (arXiv 1804.07931), eq. 2 to 4; Ma et al.
2018, "Modeling task relationships ... with multi-gate mixture-of-experts" (KDD), eq. 5 to 7; Tang
et al. 2020, "Progressive layered extraction" (RecSys), eq. 1 to 5.

Shapes: B batch, W width, K experts, T labels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive, check_share
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel
from deepseek.recsys.first_models import checked_widths, hidden_layers
from deepseek.recsys.own_features import OwnFeatures, checked_own_features


class Tower(nn.Module):
    """Hidden layers and one output.

    Args:
        widths: of the input and the hidden layers.
        dropout: share of hidden values that training leaves out.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = hidden_layers(widths, dropout)
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B"]:
        """Return a number for each sample."""
        return self.output(self.layers(x))[:, 0]


class EntireSpaceModel(TableModel):
    """ESMM: a click, and a conversion that needs one, learnt from everything that was shown.

    Of two labels the first is the click and the second the conversion, 1 only where there was a
    click. The logit of the second is that of `p(click) p(conversion | click)`, so that both are
    learnt on all samples; `conversion_rate` gives the factor.

    Args:
        embedding_dim: numbers of a vector; both towers have the same.
        hidden_dims: widths of the hidden layers of a tower.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the labels of the data are yes or no.

    Raises:
        ConfigError: there are not two labels.
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
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim,
            hidden_dims=checked_widths("hidden_dims", hidden_dims), dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors and towers."""
        if len(layout.labels) != 2:
            raise ConfigError(
                f"ESMM has a click and a conversion, the data have {len(layout.labels)} labels",
                fix="give two labels, the click first",
            )
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        widths = [self.embedder.width, *config["hidden_dims"]]
        self.click = Tower(widths, config["dropout"])
        self.conversion = Tower(widths, config["dropout"])
        self.names = layout.labels

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the logits of click, and of click and conversion, (B,) each."""
        x = self.embedder.flat(batch)
        click, conversion = self.click(x), self.conversion(x)
        both = logit_of_product(click, conversion)
        return dict(zip(self.names, (click, both), strict=True))

    def conversion_rate(self, batch: Batch) -> Float[Tensor, "B"]:
        """Return p(conversion | click)."""
        return self.conversion(self.embedder.flat(batch)).sigmoid()


def logit_of_product(first: Tensor, second: Tensor) -> Tensor:
    """Return the logit of the product of two probabilities from their logits."""
    yes = F.logsigmoid(first) + F.logsigmoid(second)
    no = torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(first) + F.logsigmoid(-second))
    return yes - no


class Gate(nn.Module):
    """A mean of experts, by weights that depend on the sample.

    Args:
        width: W.
        num_experts: K.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_experts, bias=False)

    def forward(self, x: Float[Tensor, "B W"], experts: Float[Tensor, "B K E"]) -> Tensor:
        """Return the mean, (B, E)."""
        return torch.einsum("bk,bke->be", self.linear(x).softmax(1), experts)


class MixtureOfExperts(TableModel):
    """MMoE: experts that all labels share, and for each label a gate and a tower.

    Args:
        embedding_dim: numbers of a vector.
        num_experts: K.
        expert_dims: widths of the layers of an expert.
        tower_dims: widths of the hidden layers of a tower.
        own_features: label -> features that its tower alone sees, and no expert.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the labels of the data say what is learnt.

    Raises:
        ConfigError: there is one label, or `own_features` names what is not there.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (64,),
        tower_dims: Sequence[int] = (16,),
        own_features: Mapping[str, Sequence[str]] | None = None,
        dropout: float = 0.0,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim, num_experts=num_experts)
        check_share(dropout=dropout)
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim, num_experts=num_experts,
            expert_dims=_some_widths("expert_dims", expert_dims),
            tower_dims=checked_widths("tower_dims", tower_dims),
            own_features=checked_own_features(own_features), dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors, experts, gates and towers."""
        names = _several_labels(layout, type(self).__name__)
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        self.own = OwnFeatures(self.embedder, config["own_features"])
        self.experts = _experts(config["num_experts"], self.own.width, config)
        self.gates = nn.ModuleList(Gate(self.own.width, config["num_experts"]) for _ in names)
        self.towers = _towers(names, self.own, config)
        self.names = names

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the output of each label, (B,)."""
        flat = self.embedder.flat(batch)
        x = self.own.common(flat)
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        parts = zip(self.names, self.gates, self.towers, strict=True)
        return {
            name: tower(self.own.beside(gate(x, experts), flat, name))
            for name, gate, tower in parts
        }


class Extraction(nn.Module):
    """One level of PLE: experts of each label and shared ones, and the gates behind them.

    Args:
        width: of what comes in.
        num_labels: T.
        num_own: experts of each label.
        num_shared: experts of all.
        has_shared_gate: whether there is a level behind it, which takes a shared vector, too.
        config: `expert_dims` and `dropout`.
    """

    def __init__(
        self,
        width: int,
        num_labels: int,
        num_own: int,
        num_shared: int,
        has_shared_gate: bool,
        config: Mapping,
    ) -> None:
        super().__init__()
        self.own = nn.ModuleList(_experts(num_own, width, config) for _ in range(num_labels))
        self.shared = _experts(num_shared, width, config)
        self.gates = nn.ModuleList(Gate(width, num_own + num_shared) for _ in range(num_labels))
        everyone = num_labels * num_own + num_shared
        self.shared_gate = Gate(width, everyone) if has_shared_gate else None

    def forward(self, each: Sequence[Tensor], common: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the vector of each label, and the shared one (as it came, at the last level)."""
        shared = [expert(common) for expert in self.shared]
        own = [
            [expert(x) for expert in experts]  # pyright: ignore[reportGeneralTypeIssues]
            for x, experts in zip(each, self.own, strict=True)
        ]
        mixed = [
            gate(x, torch.stack([*mine, *shared], 1))
            for x, mine, gate in zip(each, own, self.gates, strict=True)
        ]
        if self.shared_gate is not None:
            everything = [vector for mine in own for vector in mine] + shared
            common = self.shared_gate(common, torch.stack(everything, 1))
        return mixed, common


class ProgressiveExtraction(TableModel):
    """PLE: levels of experts, of each label and shared; a label sees its own and the shared ones.

    Args:
        embedding_dim: numbers of a vector.
        num_levels: extractions one after another; 1 is the paper's CGC.
        num_own: experts of each label, at each level.
        num_shared: shared experts at each level.
        expert_dims: widths of the layers of an expert.
        tower_dims: widths of the hidden layers of a tower.
        own_features: label -> features that its tower alone sees, and no expert.
        dropout: share of hidden values that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the labels of the data say what is learnt.

    Raises:
        ConfigError: there is one label, or `own_features` names what is not there.
    """

    def __init__(
        self,
        embedding_dim: int = 16,
        num_levels: int = 2,
        num_own: int = 2,
        num_shared: int = 2,
        expert_dims: Sequence[int] = (64,),
        tower_dims: Sequence[int] = (16,),
        own_features: Mapping[str, Sequence[str]] | None = None,
        dropout: float = 0.0,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(
            embedding_dim=embedding_dim, num_levels=num_levels, num_own=num_own,
            num_shared=num_shared,
        )  # fmt: skip
        check_share(dropout=dropout)
        super().__init__(
            layout, num_classes, embedding_dim=embedding_dim, num_levels=num_levels,
            num_own=num_own, num_shared=num_shared,
            expert_dims=_some_widths("expert_dims", expert_dims),
            tower_dims=checked_widths("tower_dims", tower_dims),
            own_features=checked_own_features(own_features), dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors, levels and towers."""
        self.names = _several_labels(layout, type(self).__name__)
        config = self.config
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        self.own = OwnFeatures(self.embedder, config["own_features"])
        depth = config["num_levels"]
        widths = [self.own.width, *[config["expert_dims"][-1]] * (depth - 1)]
        self.levels = nn.ModuleList(
            Extraction(
                width, len(self.names), config["num_own"], config["num_shared"],
                number < depth - 1, config,
            )
            for number, width in enumerate(widths)
        )  # fmt: skip
        self.towers = _towers(self.names, self.own, config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the output of each label, (B,)."""
        flat = self.embedder.flat(batch)
        common = self.own.common(flat)
        each = [common] * len(self.names)
        for level in self.levels:
            each, common = level(each, common)
        parts = zip(self.names, self.towers, each, strict=True)
        return {name: tower(self.own.beside(x, flat, name)) for name, tower, x in parts}


def _experts(count: int, width: int, config: Mapping) -> nn.ModuleList:
    widths = [width, *config["expert_dims"]]
    return nn.ModuleList(hidden_layers(widths, config["dropout"]) for _ in range(count))


def _towers(names: Sequence[str], own: OwnFeatures, config: Mapping) -> nn.ModuleList:
    width, dims = config["expert_dims"][-1], config["tower_dims"]
    return nn.ModuleList(
        Tower([width + own.width_of(name), *dims], config["dropout"]) for name in names
    )


def _some_widths(name: str, widths: Sequence[int]) -> list[int]:
    if not widths:
        raise ConfigError(f"{name} is empty: an expert is a layer or more", fix="use [64]")
    return checked_widths(name, widths)


def _several_labels(layout: FeatureLayout, model: str) -> tuple[str, ...]:
    if len(layout.labels) < 2:
        raise ConfigError(
            f"{model} has an output for each of several labels, the data have"
            f" {', '.join(layout.labels)}",
            fix="give the feature spec two labels or more, or choose a model of one",
        )
    return layout.labels


ESMM = Architecture(EntireSpaceModel)
MMOE = Architecture(MixtureOfExperts)
PLE = Architecture(ProgressiveExtraction)
