"""Features of a table -> vectors: what every model of tables begins with.

One table holds the vectors of all features, those of a feature in a row: a look-up of a batch is
one operator, and ranks can divide it by rows.

Shapes: B batch, S ids, D numbers, L sequence, E numbers of a vector, F fields.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepseek.config.features import FeatureSpec
from deepseek.errors import ConfigError
from deepseek.models.checks import check_positive

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class FeatureLayout:
    """What a batch of features holds, as a model is built for it; JSON-able by `to_json`.

    Attributes:
        ids: name of each column of `sparse` -> number of its ids; 0: open, any 63-bit number.
        numbers: names of the columns of `dense`.
        sequences: name -> number of ids.
        shares: name -> the column of `sparse` whose vectors it has.
        labels: names of what is to be learnt.
    """

    ids: dict[str, int] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    sequences: dict[str, int] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: FeatureSpec) -> "FeatureLayout":
        """Return the layout of a fitted spec."""
        categories = [*spec.sparse.items(), *spec.sequence.items()]
        return cls(
            ids=spec.ids,
            numbers=spec.numbers,
            sequences={name: spec.source(it).num_ids for name, it in spec.sequence.items()},
            shares={name: it.shares for name, it in categories if it.shares is not None},
            labels=tuple(spec.label),
        )

    def to_json(self) -> dict:
        """Return a JSON-able dict; `from_json` reads it back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping) -> "FeatureLayout":
        """Build from what `to_json` returned.

        Raises:
            ConfigError: it is something else.
        """
        try:
            return cls(
                ids={str(name): int(size) for name, size in content["ids"].items()},
                numbers=tuple(map(str, content["numbers"])),
                sequences={str(name): int(size) for name, size in content["sequences"].items()},
                shares={str(name): str(of) for name, of in content["shares"].items()},
                labels=tuple(map(str, content["labels"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"layout={str(content)[:60]!r} is no layout of features: {error!r}",
                fix="give FeatureLayout.of(spec).to_json(), or leave it to the data",
            ) from error


class Embedder(nn.Module):
    """Vectors and numbers of the features of a batch.

    ```
    embedder(batch)                  (B, F, E)  a vector for each field: ids, sequences, numbers
    embedder.sparse(batch)           (B, S, E)  the ids alone
    embedder.sequence(batch, name)   (B, L, E)  and which places are filled, bool (B, L)
    embedder.numbers(batch)          (B, D)
    embedder.flat(batch)             (B, W)     vectors side by side, and the numbers as they are
    ```
    A sequence becomes one vector, the mean of its own; a number x becomes x times a vector.

    Args:
        layout: what a batch holds.
        embedding_dim: E.
        tables: for some names of `ids` or `sequences` a module from ids, int64 (...), to vectors
            (..., E), in place of rows of the table here; names with open ids need one.
        scale: standard deviation of the first vectors.
        takes_numbers: whether numbers have vectors; without, they are no fields, and in `flat`
            alone.

    Attributes:
        num_fields: F.
        width: W.

    Raises:
        ConfigError: there are no features, or ids are open and there is no table for them.
    """

    offsets: Tensor

    def __init__(
        self,
        layout: FeatureLayout,
        embedding_dim: int,
        tables: Mapping[str, nn.Module] | None = None,
        scale: float = 0.01,
        takes_numbers: bool = True,
    ) -> None:
        super().__init__()
        check_positive(embedding_dim=embedding_dim)
        if not (layout.ids or layout.numbers or layout.sequences):
            raise ConfigError("there are no features", fix="give the spec one or more")
        self.layout, self.embedding_dim = layout, embedding_dim
        names = [*layout.ids, *layout.sequences]
        self._own = {name: f"table_{number}" for number, name in enumerate(names)}
        self.tables = nn.ModuleDict(
            {self._own[name]: module for name, module in (tables or {}).items()}
        )
        starts, num_rows = self._lay_out()
        self.table = nn.Embedding(num_rows, embedding_dim) if num_rows else None
        offsets = torch.tensor([starts.get(name, 0) for name in layout.ids], dtype=torch.int64)
        self.register_buffer("offsets", offsets, persistent=False)
        self._starts = starts
        self.number_vectors = (
            nn.Parameter(torch.empty(len(layout.numbers), embedding_dim))
            if layout.numbers and takes_numbers
            else None
        )
        for weight in (self.table.weight if self.table else None, self.number_vectors):
            if weight is not None:
                nn.init.normal_(weight, std=scale)
        self.num_fields = len(names) + (len(layout.numbers) if takes_numbers else 0)
        self.width = len(names) * embedding_dim + len(layout.numbers)

    def _lay_out(self) -> tuple[dict[str, int], int]:
        """Return where the rows of each feature begin in the table, and how many there are."""
        starts: dict[str, int] = {}
        num_rows = 0
        layout = self.layout
        for name, size in [*layout.ids.items(), *layout.sequences.items()]:
            source = layout.shares.get(name, name)
            if self._own[source] in self.tables or self._own[name] in self.tables:
                continue
            if size == 0:
                raise ConfigError(
                    f"{name} has open ids, for which this model has no table that grows",
                    fix=f"set the encoding of {name} to hash or vocabulary",
                )
            if source in starts:
                starts[name] = starts[source]
                continue
            starts[name] = starts[source] = num_rows
            num_rows += size
        return starts, num_rows

    def forward(self, batch: Batch) -> Float[Tensor, "B F E"]:
        """Return a vector for each field."""
        fields = [self.sparse(batch)] if self.layout.ids else []
        fields += [self.pooled(batch, name)[:, None] for name in self.layout.sequences]
        if self.number_vectors is not None:
            fields.append(self.numbers(batch)[..., None] * self.number_vectors)
        return torch.cat(fields, 1)

    def flat(self, batch: Batch) -> Float[Tensor, "B W"]:
        """Return the vectors of ids and sequences side by side, then the numbers."""
        parts = [self.sparse(batch).flatten(1)] if self.layout.ids else []
        parts += [self.pooled(batch, name) for name in self.layout.sequences]
        if self.layout.numbers:
            parts.append(self.numbers(batch))
        return torch.cat(parts, 1)

    def sparse(self, batch: Batch) -> Float[Tensor, "B S E"]:
        """Return the vectors of the ids."""
        ids = batch["sparse"]
        if not self.tables and self.table is not None:
            return self.table(ids + self.offsets)
        columns = [self._look_up(name, ids[:, i]) for i, name in enumerate(self.layout.ids)]
        return torch.stack(columns, 1)

    def sequence(
        self, batch: Batch, name: str
    ) -> tuple[Float[Tensor, "B L E"], Bool[Tensor, "B L"]]:
        """Return the vectors of a sequence, and which of its places are filled."""
        ids = batch[f"sequence.{name}"]
        places = torch.arange(ids.shape[1], device=ids.device)
        return self._look_up(name, ids), places < batch[f"length.{name}"][:, None]

    def pooled(self, batch: Batch, name: str) -> Float[Tensor, "B E"]:
        """Return the mean of the vectors of a sequence; zeros where it is empty."""
        vectors, is_filled = self.sequence(batch, name)
        total = (vectors * is_filled[..., None]).sum(1)
        return total / is_filled.sum(1, keepdim=True).clamp(min=1)

    def numbers(self, batch: Batch) -> Float[Tensor, "B D"]:
        """Return the numbers."""
        return batch["dense"]

    def _look_up(self, name: str, ids: Tensor) -> Tensor:
        for each in (name, self.layout.shares.get(name, name)):
            if self._own[each] in self.tables:
                return self.tables[self._own[each]](ids)
        if self.table is None:
            raise RuntimeError(f"{name} has no table")
        return self.table(ids + self._starts[name])
