"""How wide batches of tokens are."""

import numpy as np
import pytest

from deepseek.datasets.padding import pad_rows


@pytest.mark.parametrize(
    ("longest", "width", "close"),
    [(1, 8, 2), (33, 40, 34), (64, 64, 64), (65, 72, 68), (128, 128, 128), (130, 136, 136)],
)
def test_short_batches_are_hardly_wider_than_their_longest_row(longest, width, close):
    rows = [np.ones(longest, np.int64), np.ones(1, np.int64)]
    assert pad_rows(rows, 512, 0).shape == (2, width)
    batch = pad_rows(rows, 512, 0, closely=True)
    assert batch.shape == (2, close)
    assert batch.sum() == longest + 1
    assert pad_rows(rows, longest, 0, closely=True).shape == (2, longest)
    assert pad_rows(rows, 512, 0, to_length=True, closely=True).shape == (2, 512)
