"""Rows of tokens of different lengths as one batch.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 8
"""What a batch is as wide as a multiple of: a GPU's kernels are faster."""
MULTIPLE_ON_CPU = 2
"""Likewise without a GPU: sentences filled up to a multiple of 8 are 10 % more tokens."""

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens before and after each text."""


def choose_multiple() -> int:
    """Return what the batches of this machine are as wide as a multiple of.

    To be asked before worker processes are forked: they cannot look for a GPU.
    """
    return MULTIPLE if torch.cuda.is_available() else MULTIPLE_ON_CPU


def put_in_frame(tokens: np.ndarray, frame: Frame, fill: int | None = None) -> np.ndarray:
    """Return tokens between those of the frame, int64; or between as many of `fill`."""
    before, after = (
        np.array(part if fill is None else [fill] * len(part), np.int64) for part in frame
    )
    return np.concatenate([before, tokens, after])


def frame_and_pad(rows: Sequence[np.ndarray], frame: Frame, length: int, pad: int) -> Tensor:
    """Return texts as a batch (B, T), T at most `length`: too long ones lose their end."""
    room = length - len(frame[0]) - len(frame[1])
    return pad_rows([put_in_frame(row[:room], frame) for row in rows], length, pad)


def pad_rows(
    rows: Sequence[np.ndarray],
    length: int,
    fill: int,
    *,
    to_length: bool = False,
    multiple: int = MULTIPLE,
) -> Tensor:
    """Return rows filled up to the longest, int64 (B, T).

    Args:
        rows: of at most `length` tokens.
        length: T at most.
        fill: the token that fills up.
        to_length: T is `length`, whatever the rows.
        multiple: what T is a multiple of, where `length` allows it.
    """
    longest = max(map(len, rows))
    width = length if to_length else min(-(-longest // multiple) * multiple, length)
    padded = np.full((len(rows), max(width, 1)), fill, np.int64)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(padded)
