import numpy as np
import pytest
import torch

from deepseek.datasets import DataLoader, TokenDataset
from deepseek.errors import DataError


def test_the_target_of_a_token_is_the_next_and_no_token_is_lost():
    data = TokenDataset(np.arange(23), 5, [str(i) for i in range(23)])
    assert len(data) == 4
    assert data[3]["inputs"].tolist() == [15, 16, 17, 18, 19]
    assert data[3]["targets"].tolist() == [16, 17, 18, 19, 20]
    batch = next(iter(DataLoader(data, batch_size=2, shuffle=False)))
    assert batch["inputs"].shape == (2, 5)
    assert batch["inputs"].dtype == torch.int64


def test_a_row_splits_in_order():
    data = TokenDataset(np.array([0, 1, 2] * 3 + [0]), 2, "abc")
    assert data.vocabulary == ("a", "b", "c")
    assert data.spec.task == "language_modelling"
    assert data.spec.class_counts == (4, 3, 3)
    first, last = data.split(0.4)
    assert (len(first), len(last)) == (2, 1)


def test_what_cannot_be_tokens_is_refused():
    with pytest.raises(DataError, match="token 7 is not of the vocabulary of 3"):
        TokenDataset(np.array([0, 7, 1]), 1, "abc")
    with pytest.raises(DataError, match="3 tokens do not fill one sequence of 5"):
        TokenDataset(np.array([0, 1, 2]), 5, "abc")
    with pytest.raises(DataError, match=r"no row of whole numbers"):
        TokenDataset(np.zeros((2, 2)), 1, "abc")


def test_iteration_over_tokens_ends():
    data = TokenDataset(np.arange(23), 5, [str(i) for i in range(23)])
    assert [int(sample["inputs"][0]) for sample in data] == [0, 5, 10, 15]
    assert data[-1]["targets"].tolist() == [16, 17, 18, 19, 20]
