from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.distributed.counting import attend_in_shares, cut_and_gather
from tests.distributed.ranks import run_ranks
from torch.testing._internal.distributed.fake_pg import FakeStore

from deepseek.parallel.context import IGNORE_INDEX, TokenShare

LENGTHS = (1, 2, 5, 6, 7, 8, 12)
DEGREES = st.integers(2, 5)


@contextmanager
def share_of(rank, degree, is_causal):
    """The tokens of one rank, without the others."""
    dist.init_process_group("fake", rank=rank, world_size=degree, store=FakeStore())
    try:
        yield TokenShare(dist.group.WORLD, "cpu", is_causal=is_causal)
    finally:
        dist.destroy_process_group()


def tokens_of(share, length, rank):
    """Token numbers of a rank; what lies beyond the sequence is left out."""
    return [t for a, b in share.runs(length, rank) for t in range(a, b) if t < length]


@settings(max_examples=60, deadline=None)
@given(DEGREES, st.integers(1, 60), st.booleans())
def test_every_token_is_on_one_rank_and_all_ranks_hold_as_many(degree, length, is_causal):
    with share_of(0, degree, is_causal) as share:
        held = [tokens_of(share, length, rank) for rank in range(degree)]
        sizes = {sum(b - a for a, b in share.runs(length, rank)) for rank in range(degree)}
    assert sorted(token for tokens in held for token in tokens) == list(range(length))
    assert sizes == {-(-length // degree)}


@settings(max_examples=60, deadline=None)
@given(DEGREES, st.integers(1, 12))
def test_causal_work_is_the_same_on_every_rank(degree, half):
    length = 2 * degree * half
    with share_of(0, degree, True) as share:
        # query t attends to t + 1 keys
        pairs = [sum(t + 1 for t in tokens_of(share, length, rank)) for rank in range(degree)]
    assert pairs == [length * (length + 1) // 2 // degree] * degree


@settings(deadline=None)
@given(st.integers(1, 30))
def test_causal_tokens_that_cannot_be_halved_evenly_lie_in_a_row(length):
    with share_of(0, 4, True) as share:
        runs = [share.runs(length, rank) for rank in range(4)]
    if length % 8:
        assert [len(each) for each in runs] == [1] * 4
    else:
        assert [len(each) for each in runs] == [2] * 4


@settings(max_examples=60, deadline=None)
@given(DEGREES, st.integers(1, 30), st.booleans(), st.data())
def test_a_cut_has_the_tokens_of_its_rank_and_is_filled_up(degree, length, is_causal, data):
    rank = data.draw(st.integers(0, degree - 1))
    targets = torch.arange(3 * length).view(3, length)
    with share_of(rank, degree, is_causal) as share:
        own = share.cut(targets, 1, IGNORE_INDEX)
        tokens = tokens_of(share, length, rank)
    assert own.shape == (3, -(-length // degree))
    assert torch.equal(own[:, : len(tokens)], targets[:, tokens])
    assert (own[:, len(tokens) :] == IGNORE_INDEX).all()
    assert own.dtype == targets.dtype


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_any_dim_can_be_the_one_of_tokens(dim):
    whole = torch.randn(5, 5, 5)
    with share_of(1, 2, False) as share:
        own = share.cut(whole, dim)
    expected = torch.cat([whole.narrow(dim, 3, 2), torch.zeros_like(whole.narrow(dim, 0, 1))], dim)
    assert torch.equal(own, expected)


# -- between ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [2, 3])
def test_what_was_cut_is_gathered_in_order_and_its_gradients_are_added_up(degree, tmp_path):
    ranks = run_ranks(degree, cut_and_gather, LENGTHS, folder=tmp_path)
    for is_causal in (False, True):
        for length in LENGTHS:
            whole = torch.arange(1.0, 2 * length + 1).view(1, length, 2)
            for own, together, gradient in (rank[length, is_causal] for rank in ranks):
                assert torch.equal(torch.tensor(together), whole)
                # every rank uses all tokens with the weight of their own value; padding has none
                assert torch.equal(torch.tensor(gradient), degree * torch.tensor(own))


@pytest.mark.parametrize("degree", [2, 3])
def test_attention_of_the_ranks_tokens_is_that_of_one_process(degree, tmp_path):
    lengths = [n for n in LENGTHS if n > 1]
    for rank in run_ranks(degree, attend_in_shares, lengths, folder=tmp_path):
        assert len(rank) == 2 * len(lengths)
        for output, gradient in rank.values():
            assert output < 1e-6
            assert gradient < 1e-5
