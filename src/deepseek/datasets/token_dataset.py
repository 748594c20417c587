"""Tokens in a row that are there already, cut to sequences for a language model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import ConfigError, DataError


class TokenDataset(torch.utils.data.Dataset):
    """Sequences that follow each other in a row of tokens; the target of a token is the next.

    Args:
        tokens: numbers from 0 on, of shape (N,), kept in memory or mapped from a file.
        sequence_length: tokens in a sample; the last tokens that fill none are left out.
        vocabulary: the text of each token, in order of their numbers.

    Raises:
        DataError: there are too few tokens, or one is not of the vocabulary.
    """

    is_light = True
    lengths = None

    def __init__(
        self, tokens: np.ndarray | Tensor, sequence_length: int, vocabulary: Sequence[str]
    ) -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length={sequence_length} is not >= 1", fix="raise it")
        self._tokens = tokens.numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
        if self._tokens.ndim != 1 or not np.issubdtype(self._tokens.dtype, np.integer):
            raise DataError(
                f"tokens of shape {self._tokens.shape} and type {self._tokens.dtype} are no row of"
                " whole numbers",
                fix="give an integer array of shape (N,)",
            )
        if len(self._tokens) <= sequence_length:
            raise DataError(
                f"{len(self._tokens)} tokens do not fill one sequence of {sequence_length} and its"
                " next token",
                fix="give more text, or a smaller sequence_length",
            )
        lowest, highest = int(self._tokens.min()), int(self._tokens.max())
        if lowest < 0 or highest >= len(vocabulary):
            raise DataError(
                f"token {lowest if lowest < 0 else highest} is not of the vocabulary of"
                f" {len(vocabulary)}",
                fix="give the vocabulary that the tokens were made with",
            )
        self.sequence_length = sequence_length
        self.vocabulary = tuple(vocabulary)
        field = FieldSpec((sequence_length,), "int64")
        self.spec = DataSpec(
            task="language_modelling",
            fields={"inputs": field, "targets": field},
            class_names=self.vocabulary,
            class_counts=tuple(np.bincount(self._tokens, minlength=len(vocabulary)).tolist()),
        )

    def split(self, share: float) -> tuple["TokenDataset", "TokenDataset"]:
        """Return (all but the last share of the row, the last share); share in (0, 1)."""
        end = round(len(self._tokens) * (1 - share))
        return (
            TokenDataset(self._tokens[:end], self.sequence_length, self.vocabulary),
            TokenDataset(self._tokens[end:], self.sequence_length, self.vocabulary),
        )

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self.sequence_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch, _ = self.get_batch([range(len(self))[index]], 0)
        return {"inputs": batch["inputs"][0], "targets": batch["targets"][0]}

    def get_batch(
        self, indices: Sequence[int], epoch: int
    ) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
        """Return sequences (B, T) and, as targets (B, T), the same one token later."""
        length = self.sequence_length
        rows = np.stack([self._tokens[i * length : (i + 1) * length + 1] for i in indices])
        tokens = torch.from_numpy(rows.astype(np.int64))
        return {
            "inputs": tokens[:, :-1].contiguous(),
            "targets": tokens[:, 1:].contiguous(),
            "index": torch.tensor(indices, dtype=torch.int64),
        }, []
