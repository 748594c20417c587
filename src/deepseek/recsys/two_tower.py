"""A vector of who asks and a vector of an item, whose product says how well they go together.

Paper: Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item
recommendations" (RecSys), eq. 3 to 6, algorithm 2. Departures: the first gaps of an item count
alike, as its first would count for long; ids stand in a table of their own, not in a hashed one.

Shapes: B batch, W width, E numbers of a vector.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepseek.datasets.spec import DataSpec
from deepseek.errors import ConfigError
from deepseek.models.checks import check_choice, check_positive
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel
from deepseek.recsys.first_models import check_one_label, checked_widths, hidden_layers

OBJECTIVES = ("in_batch", "binary")


class ItemFrequency(nn.Module):
    """How probable it is that a batch has an item, learnt from the batches between two of it.

    Args:
        num_items: ids.
        rate: weight of the newest gap, 0..1; of the first ones 1 / (how many there were).
    """

    last: Tensor
    gap: Tensor
    count: Tensor
    step: Tensor

    def __init__(self, num_items: int, rate: float = 0.05) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("last", torch.zeros(num_items))
        self.register_buffer("gap", torch.zeros(num_items))
        self.register_buffer("count", torch.zeros(num_items))
        self.register_buffer("step", torch.zeros(()))

    @torch.no_grad()
    def update(self, items: Int[Tensor, "B"]) -> None:
        """Take the items of a batch; one that occurs twice counts once."""
        self.step += 1
        # the rows of one item all write the same number: no need to find the different ones
        since, count = self.step - self.last[items], self.count[items] + 1
        self.gap[items] = self.gap[items].lerp(since, (1 / count).clamp(min=self.rate))
        self.last[items], self.count[items] = self.step, count

    def log_probability(self, items: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the logarithm of the probability; 0 (certain) for what was never seen."""
        return -self.gap[items].clamp(min=1).log()


class TwoTower(TableModel):
    """Two towers of hidden layers, of the user and of the item.

    In training with `objective="in_batch"` it returns logits (B, B), of each user and each item of
    the batch, less the logarithm of the item's frequency; other rows with the same item do not
    count. In evaluation, and with "binary", it returns those of each row, (B,).

    Args:
        item: features that describe the item, the first of them its id; all others are the user's.
            Where a number has a second one that says it is missing, the data add `NAME.missing`.
        embedding_dim: of the features.
        hidden_dims: widths of the hidden layers of a tower.
        dim: E.
        temperature: by which the cosine of the vectors is divided.
        objective: "in_batch", or "binary": the label of each row.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.

    Raises:
        ConfigError: a feature is not known, or one of the towers has none.
    """

    def __init__(
        self,
        item: Sequence[str] = ("item_id",),
        embedding_dim: int = 16,
        hidden_dims: Sequence[int] = (64,),
        dim: int = 32,
        temperature: float = 0.1,
        objective: str = "in_batch",
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(embedding_dim=embedding_dim, dim=dim)
        check_choice(objective=(objective, OBJECTIVES))
        if not temperature > 0:
            raise ConfigError(f"temperature={temperature} is not above 0", fix="use 0.1")
        super().__init__(
            layout, num_classes, item=list(item), embedding_dim=embedding_dim,
            hidden_dims=checked_widths("hidden_dims", hidden_dims), dim=dim,
            temperature=temperature, objective=objective,
        )  # fmt: skip

    @property
    def own_task(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Name of the task that training takes."""
        return "in_batch" if self.config["objective"] == "in_batch" else None

    def bind_features(self, spec: DataSpec, known: DataSpec | None = None) -> None:
        """Make the modules; that a number of the item is missing is the item's, too.

        Raises:
            ConfigError: see `TableModel.bind_features`.
        """
        if self.layout is None and spec.features is not None:
            # named one by one: models saved with these in the user's tower are built as they were
            item, numbers = self.config["item"], spec.features.numbers
            marks = [f"{name}.missing" for name in item if f"{name}.missing" in numbers]
            self._arguments["item"] = list(dict.fromkeys([*item, *marks]))
        super().bind_features(spec, known)

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors and towers."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        names, item = [*layout.ids, *layout.sequences, *layout.numbers], config["item"]
        user = [name for name in names if name not in item]
        if not set(item) <= set(names) or not user or not item or item[0] not in layout.ids:
            raise ConfigError(
                f"item={item} of the features {names}: the first must be an id, and some must be"
                " left for the user",
                fix="give item the features of the item, its id first",
            )
        self.item_column = list(layout.ids).index(item[0])
        self.embedder = Embedder(layout, config["embedding_dim"], takes_numbers=False)
        self.user_tower = self._tower(layout, user)
        self.item_tower = self._tower(layout, item)
        self.users, self.items = user, item
        if config["objective"] == "in_batch":
            self.frequency = ItemFrequency(layout.ids[item[0]])

    def _tower(self, layout: FeatureLayout, names: Sequence[str]) -> nn.Sequential:
        config = self.config
        width = sum(1 if name in layout.numbers else config["embedding_dim"] for name in names)
        widths = [width, *config["hidden_dims"]]
        return nn.Sequential(hidden_layers(widths), nn.Linear(widths[-1], config["dim"]))

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (B,) or (B, B)."""
        users, items = self.user_vectors(batch), self.item_vectors(batch)
        temperature = self.config["temperature"]
        if not (self.training and self.own_task):
            return (users * items).sum(1) / temperature
        ids = batch["sparse"][:, self.item_column]
        self.frequency.update(ids)
        logits = users @ items.T / temperature - self.frequency.log_probability(ids)
        is_same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        return logits.masked_fill(is_same, -torch.inf)

    def user_vectors(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Return vectors of length 1 of who asks."""
        return F.normalize(self.user_tower(self._inputs(batch, self.users)), dim=1)

    def item_vectors(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Return vectors of length 1 of the items."""
        return F.normalize(self.item_tower(self._inputs(batch, self.items)), dim=1)

    def _inputs(self, batch: Batch, names: Sequence[str]) -> Float[Tensor, "B W"]:
        layout = self.embedder.layout
        ids, numbers = list(layout.ids), list(layout.numbers)
        sparse = self.embedder.sparse(batch) if ids else None
        parts = []
        for name in names:
            if sparse is not None and name in layout.ids:
                parts.append(sparse[:, ids.index(name)])
            elif name in layout.sequences:
                parts.append(self.embedder.pooled(batch, name))
            else:
                parts.append(batch["dense"][:, [numbers.index(name)]])
        return torch.cat(parts, 1)


TWO_TOWER = Architecture(TwoTower)
