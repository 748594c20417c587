"""Keys and values of the tokens before, kept so that a decoder computes each token once.

Tensors are of a fixed size, so that a compiled step is compiled once. A row of the batch is filled
from its beginning, whatever the others do; what lies behind a row's last token is never seen.

Shapes: B batch, H heads, G heads of keys and values, T new tokens, S slots, E head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deepseek.models.attention import attention


@dataclass(frozen=True)
class LayerCache:
    """What one layer has kept, and where the new tokens belong.

    Attributes:
        keys: (B, G, S, E), changed in place.
        values: the same for values.
        positions: of the new tokens, (B, T).
        mask: `True` where a new token may attend to a slot.
    """

    keys: Float[Tensor, "B G S E"]
    values: Float[Tensor, "B G S E"]
    positions: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B 1 T S"]

    def attend(
        self,
        q: Float[Tensor, "B H T E"],
        k: Float[Tensor, "B G T E"],
        v: Float[Tensor, "B G T E"],
        *,
        dropout: float = 0.0,
    ) -> Float[Tensor, "B H T E"]:
        """Keep the keys and values of the new tokens, and let these attend to all up to them."""
        slots = self.positions[:, None, :, None].expand_as(k)
        self.keys.scatter_(2, slots, k.to(self.keys.dtype))
        self.values.scatter_(2, slots, v.to(self.values.dtype))
        length = self.mask.shape[-1]
        keys, values = self.keys[:, :, :length], self.values[:, :, :length]
        return attention(q, keys.to(q.dtype), values.to(q.dtype), mask=self.mask, dropout=dropout)


@dataclass(frozen=True)
class KeyValueCache:
    """What all layers of a decoder have kept.

    Attributes:
        keys: one tensor per layer.
        values: the same for values.
    """

    keys: tuple[Float[Tensor, "B G S E"], ...]
    values: tuple[Float[Tensor, "B G S E"], ...]

    @classmethod
    def empty(
        cls,
        shapes: Sequence[tuple[int, int, int, int]],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KeyValueCache":
        """Return a cache without tokens.

        Args:
            shapes: B, G, S, E of each layer.
            device: where to.
            dtype: of what is kept.
        """
        # zeros, not what memory holds: a NaN times a probability of 0 is a NaN
        made = [
            tuple(torch.zeros(shape, device=device, dtype=dtype) for shape in shapes)
            for _ in range(2)
        ]
        return cls(*made)

    def layers(self, positions: Int[Tensor, "B T"], length: int | None = None) -> list[LayerCache]:
        """Return the cache of each layer for new tokens.

        Args:
            positions: of the new tokens.
            length: slots that are looked at, those of all tokens so far; all by default, which is
                the same numbers from tensors of one size.
        """
        num_slots = self.keys[0].shape[2] if length is None else length
        slots = torch.arange(num_slots, device=positions.device)
        mask = (slots <= positions[..., None])[:, None]
        return [
            LayerCache(keys, values, positions, mask)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))
