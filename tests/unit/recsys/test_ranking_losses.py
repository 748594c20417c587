"""Losses of an order, against what a few lines by hand give."""

import itertools
import math

import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.recsys.ranking_losses import (
    RankingTask,
    bpr_loss,
    listmle_loss,
    listnet_loss,
    sampled_softmax_loss,
)


def test_bpr_is_the_logarithm_of_the_chance_to_be_in_order():
    assert float(bpr_loss(torch.tensor(2.0), torch.tensor(2.0))) == pytest.approx(math.log(2))
    want = -math.log(1 / (1 + math.exp(-3)))
    assert float(bpr_loss(torch.tensor(3.0), torch.tensor(0.0))) == pytest.approx(want)


def test_a_sampled_softmax_over_all_items_is_the_softmax():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([0, 3, 6, 2, 1])
    drawn = torch.stack([row[torch.arange(7) != r] for row, r in zip(scores, right, strict=True)])
    own = scores.gather(1, right[:, None])[:, 0]
    want = torch.nn.functional.cross_entropy(scores, right, reduction="none")
    torch.testing.assert_close(sampled_softmax_loss(own, drawn), want)
    hit = torch.zeros(5, 7, dtype=torch.bool).scatter_(1, right[:, None], True)
    torch.testing.assert_close(sampled_softmax_loss(own, scores, is_hit=hit), want)


def test_corrected_scores_estimate_the_whole_softmax():
    torch.manual_seed(0)
    scores, share = torch.randn(20), torch.rand(20).softmax(0) ** 2
    share = share / share.sum()
    num = 50_000
    drawn = torch.multinomial(share, num, replacement=True)
    # the sum over draws of exp(s) / (n q) estimates that over all items
    found = sampled_softmax_loss(
        scores[:1], scores[drawn][None], 0.0, (num * share[drawn]).log()[None]
    )
    want = torch.cat([scores[:1], scores]).logsumexp(0) - scores[0]
    assert float(found) == pytest.approx(float(want), rel=0.02)


def test_listnet_is_the_cross_entropy_of_being_first():
    scores, good = torch.tensor([[1.0, 2.0, 0.5, 9.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]])
    there = torch.tensor([[True, True, True, False]])
    logs = scores[0, :3].log_softmax(0)
    want = -(0.25 * logs[0] + 0.75 * logs[2])
    assert float(listnet_loss(scores, good, there)) == pytest.approx(float(want))
    assert float(listnet_loss(scores, torch.zeros(1, 4))) == 0


def test_the_likelihoods_of_all_orders_add_up_to_one():
    scores = torch.tensor([[0.3, -1.0, 2.0, 5.0]], dtype=torch.float64)
    there = torch.tensor([[True, True, True, False]])
    total = 0.0
    for order in itertools.permutations([3.0, 2.0, 1.0]):
        good = torch.tensor([[*order, 0.0]])
        total += math.exp(-float(listmle_loss(scores, good, there)))
    assert total == pytest.approx(1)
    e = scores[0].exp()
    want = -math.log(e[2] / (e[0] + e[1] + e[2])) - math.log(e[0] / (e[0] + e[1]))
    good = torch.tensor([[2.0, 1.0, 3.0, 9.0]])
    assert float(listmle_loss(scores, good, there)) == pytest.approx(want)


def batch_of(labels, groups):
    return {"targets": torch.tensor(labels), "sparse": torch.tensor(groups)[:, None]}


def test_rows_are_compared_inside_their_group():
    batch = batch_of([1.0, 0.0, 0.0, 1.0, math.nan], [7, 7, 8, 8, 7])
    scores = torch.tensor([0.0, 1.0, 5.0, 6.0, 100.0], requires_grad=True)
    task = RankingTask("bpr")
    assert task.count_items(batch) == 2
    loss = task.loss(scores, batch)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(1)) + math.log1p(math.exp(-1)))
    for kind in ("listnet", "listmle"):
        loss = RankingTask(kind).loss(scores, batch)
        want = math.log1p(math.exp(1)) + math.log1p(math.exp(-1))  # the 1 comes first in both
        assert float(loss.detach()) == pytest.approx(want)
        loss.backward()
        assert scores.grad.isfinite().all()
        assert scores.grad[4] == 0
    with pytest.raises(ConfigError, match="loss='x'"):
        RankingTask("x")
