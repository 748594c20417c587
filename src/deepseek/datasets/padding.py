"""Rows of tokens of different lengths as one batch.

Shapes: B batch, T tokens.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MULTIPLE = 8
"""What a batch is as wide as a multiple of: a GPU's kernels are faster, and shapes are few."""
SHORT = 64
"""Tokens up to which a batch is as wide as a multiple of 2 where there is no GPU, and of 4 up to
twice as many: of news sentences, multiples of 8 are 8 % more tokens. A new shape costs a CPU 24 ms
once, a step of MiniLM-L6 with 32 sentences 220 ms."""

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens before and after each text."""


def fits_closely() -> bool:
    """Return whether short batches of this machine should be hardly wider than their longest row.

    To be asked before worker processes are forked: they cannot look for a GPU. Of several
    processes some may divide a row's tokens between them, into equal parts.
    """
    return not torch.cuda.is_available() and os.environ.get("WORLD_SIZE", "1") == "1"


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
    closely: bool = False,
) -> Tensor:
    """Return rows filled up to the longest, int64 (B, T).

    Args:
        rows: of at most `length` tokens.
        length: T at most.
        fill: the token that fills up.
        to_length: T is `length`, whatever the rows.
        closely: as `fits_closely` says; T is a multiple of `MULTIPLE` otherwise.
    """
    longest = max(map(len, rows))
    multiple = MULTIPLE
    if closely and longest <= 2 * SHORT:
        multiple = 2 if longest <= SHORT else 4
    width = length if to_length else min(-(-longest // multiple) * multiple, length)
    padded = np.full((len(rows), max(width, 1)), fill, np.int64)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(padded)
