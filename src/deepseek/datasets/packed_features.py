"""The features of a row as one vector of whole numbers, to be sent and batched like any sample.

```
ids | bits of the numbers | length and ids of each sequence, as long as the longest may be
```
Shapes: N rows, W width.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from deepseek.config.features import FeatureSpec
from deepseek.datasets.feature_encoder import Features, pad_sequences
from deepseek.datasets.spec import FieldSpec


class PackedFeatures:
    """Packs features, and unpacks them.

    Args:
        spec: fitted.

    Attributes:
        field: shape (W,) and dtype of a packed row.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self._num_ids, self._num_numbers = len(spec.ids), len(spec.numbers)
        self._lengths = {name: entry.max_length for name, entry in spec.sequence.items()}
        width = self._num_ids + self._num_numbers + sum(1 + n for n in self._lengths.values())
        self.field = FieldSpec((width,), "int64")

    def pack(self, features: Features) -> np.ndarray:
        """Return rows, int64 (N, W)."""
        bits = np.ascontiguousarray(features.dense).view(np.int32).astype(np.int64)
        parts = [features.sparse, bits.reshape(len(features.dense), self._num_numbers)]
        for name, longest in self._lengths.items():
            ids, lengths = features.sequences[name]
            padded = pad_sequences(ids, lengths)
            filled = np.zeros((len(lengths), longest), np.int64)
            filled[:, : padded.shape[1]] = padded[:, :longest]
            parts += [lengths[:, None], filled]
        return np.concatenate(parts, axis=1)

    def unpack(self, rows: np.ndarray) -> Mapping[str, Tensor]:
        """Return a batch as a model takes it, of packed rows, int64 (N, W)."""
        at = self._num_ids + self._num_numbers
        bits = rows[:, self._num_ids : at].astype(np.int32)
        sequences = {}
        for name, longest in self._lengths.items():
            lengths, padded = rows[:, at].copy(), rows[:, at + 1 : at + 1 + longest]
            is_filled = np.arange(longest) < lengths[:, None]
            sequences[name] = (padded[is_filled], lengths)
            at += 1 + longest
        sparse, dense = rows[:, : self._num_ids].copy(), bits.view(np.float32)
        return Features(sparse, dense, sequences).batch()
