"""SASRec: attention over the items that a user met, oldest first, says what comes next.

Paper: Kang & McAuley 2018, "Self-attentive sequential recommendation" (arXiv 1808.09781), eq. 2 to
7. Departures: places are counted from the newest item, as histories are filled up behind; items to
compare with are drawn from all but the right one, where the paper leaves a user's own out.

Shapes: B batch, L history, E numbers of a vector, N items.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepseek.config.features import FIRST
from deepseek.errors import ConfigError
from deepseek.models.checks import check_fits, check_positive, check_share
from deepseek.models.embedder import Batch, Embedder, FeatureLayout
from deepseek.models.hints import ParallelHints
from deepseek.models.presets import Architecture
from deepseek.models.table_model import TableModel
from deepseek.recsys.first_models import check_one_label
from deepseek.recsys.retrieval_tasks import only_history


class SequenceBlock(nn.Module):
    """Causal attention and two linear layers, each with a norm before and a sum behind.

    Args:
        dim: E.
        heads: of the attention.
        dropout: share that training leaves out.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        """Return the next vectors; no place sees those after it, nor what fills up behind."""
        batch, length, dim = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.proj(seen.transpose(1, 2).reshape(batch, length, dim)))
        return x + self.drop(self.fc2(self.drop(self.fc1(self.norm2(x)).relu())))


class SASRec(TableModel):
    """The product of what a history says and the vector of an item.

    It takes the one `sequence` of the features that `shares` a sparse feature, and that feature,
    the candidate; nothing else. In training it returns logits (B, L, 2), of the next item at each
    place and of a drawn one; in evaluation those of the candidates, (B,).

    Args:
        dim: E.
        num_layers: blocks.
        heads: of the attention.
        max_length: longest history.
        dropout: share that training leaves out.
        layout: what a batch holds; by default the data say so.
        num_classes: none; the label of the data is yes or no.

    Raises:
        ConfigError: there is no such sequence, or a number is out of its range.
    """

    own_task = "next_item"

    def __init__(
        self,
        dim: int = 50,
        num_layers: int = 2,
        heads: int = 1,
        max_length: int = 50,
        dropout: float = 0.2,
        layout: Mapping | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_positive(dim=dim, num_layers=num_layers, heads=heads, max_length=max_length)
        check_share(dropout=dropout)
        if dim % heads:
            raise ConfigError(f"heads={heads} does not divide dim={dim}", fix="change heads or dim")
        super().__init__(
            layout, num_classes, dim=dim, num_layers=num_layers, heads=heads,
            max_length=max_length, dropout=dropout,
        )  # fmt: skip

    def build(self, layout: FeatureLayout) -> None:
        """Make vectors and blocks."""
        check_one_label(layout, type(self).__name__)
        config = self.config
        self.sequence, self.item_column = only_history(layout)
        item = list(layout.ids)[self.item_column]
        self.num_items = layout.ids[item]
        own = FeatureLayout(
            ids={item: self.num_items}, sequences={self.sequence: layout.sequences[self.sequence]},
            shares={self.sequence: item}, labels=layout.labels,
        )  # fmt: skip
        dim = config["dim"]
        self.embedder = Embedder(own, dim, scale=dim**-0.5)
        self.places = nn.Embedding(config["max_length"], dim)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(
            SequenceBlock(dim, config["heads"], config["dropout"])
            for _ in range(config["num_layers"])
        )
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(config["dropout"])

    @property
    def hints(self) -> ParallelHints:
        """No weight decay for vectors; blocks may be recomputed or sharded."""
        own = super().hints
        kept = (*own.no_weight_decay, "places.weight")
        return replace(own, blocks=("blocks",), no_weight_decay=kept)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (B,) or in training (B, L, 2)."""
        states = self.states(batch)
        candidates = self.embedder.sparse(self._candidates(batch))[:, 0]
        if not self.training:
            return (self._newest(states, batch) * candidates).sum(1)
        history = batch[f"sequence.{self.sequence}"]
        following = torch.cat([history[:, 1:], torch.zeros_like(history[:, :1])], 1)
        lengths, ids = batch[f"length.{self.sequence}"], batch["sparse"][:, [self.item_column]]
        following.scatter_(1, (lengths - 1).clamp(min=0)[:, None], ids)
        count = max(self.num_items - FIRST - 1, 1)
        drawn = torch.randint_like(following, FIRST, FIRST + count)
        drawn = drawn + (drawn >= following)  # all ids but the right one
        pairs = self.vectors(torch.stack([following, drawn.clamp(max=self.num_items - 1)], 2))
        return torch.einsum("ble,blke->blk", states, pairs)

    def states(self, batch: Batch) -> Float[Tensor, "B L E"]:
        """Return what the history says at each of its places.

        Raises:
            ConfigError: a history is longer than `max_length`.
        """
        vectors, is_filled = self.embedder.sequence(batch, self.sequence)
        check_fits(vectors.shape[1], self.config["max_length"])
        lengths = batch[f"length.{self.sequence}"][:, None]
        order = torch.arange(vectors.shape[1], device=lengths.device)
        age = (lengths - 1 - order).clamp(min=0)
        x = vectors * self.config["dim"] ** 0.5 + self.places(age)
        x = self.drop(x) * is_filled[..., None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors of items, (..., E), for ids (...)."""
        flat = ids.reshape(1, -1)
        batch = {
            f"sequence.{self.sequence}": flat,
            f"length.{self.sequence}": torch.full((1,), flat.shape[1], device=ids.device),
        }
        return self.embedder.sequence(batch, self.sequence)[0].view(*ids.shape, -1)

    def scores_of_all(self, batch: Batch) -> Float[Tensor, "B N"]:
        """Return the logit of every id as the next item, those of missing and unknown with them."""
        ids = torch.arange(self.num_items, device=batch["sparse"].device)
        return self._newest(self.states(batch), batch) @ self.vectors(ids).T

    def _newest(self, states: Tensor, batch: Batch) -> Float[Tensor, "B E"]:
        """Return the states at the newest items; zeros where there is no history."""
        lengths = batch[f"length.{self.sequence}"]
        rows = torch.arange(len(lengths), device=lengths.device)
        return states[rows, (lengths - 1).clamp(min=0)] * (lengths > 0)[:, None]

    def _candidates(self, batch: Batch) -> Batch:
        return {"sparse": batch["sparse"][:, [self.item_column]]}


SASREC = Architecture(SASRec)
