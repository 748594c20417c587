"""Rows against dense optimizers on the same vectors, one of torch or five lines here."""

import pytest
import torch

from deepseek.errors import ConfigError
from deepseek.recsys.tables import FTRL, AdaGrad, GrowingEmbedding, RowAdam

NUM_IDS, DIM, STEPS = 12, 4, 20


def run(optimizer, reference):
    """Step some of the ids at a time, some of them several times; return both tables."""
    generator = torch.Generator().manual_seed(0)
    table = GrowingEmbedding(DIM, optimizer, scale=0.5)
    everyone = torch.arange(NUM_IDS)
    table.learn(everyone, torch.zeros(NUM_IDS, DIM))
    dense = table.eval()(everyone).double().clone()
    reference = reference(dense)
    for _ in range(STEPS):
        ids = torch.randint(0, NUM_IDS, (7,), generator=generator)
        gradients = torch.randn(7, DIM, generator=generator)
        summed = torch.zeros(NUM_IDS, DIM, dtype=torch.float64).index_add_(
            0, ids, gradients.double()
        )
        reference(summed, ids.unique())
        table.learn(ids, gradients)
    return table(everyone).double(), dense


def each_row(make):
    """Return a reference that has an optimizer of torch for each row, and steps those touched."""

    def begin(dense):
        rows = [torch.nn.Parameter(row) for row in dense]
        optimizers = [make(row) for row in rows]

        def step(summed, touched):
            for i in touched.tolist():
                rows[i].grad = summed[i].clone()
                optimizers[i].step()

        return step

    return begin


def test_adagrad_is_that_of_torch():
    table, dense = run(
        AdaGrad(lr=0.3, initial_accumulator=0.1),
        each_row(lambda row: torch.optim.Adagrad([row], lr=0.3, initial_accumulator_value=0.1)),
    )
    torch.testing.assert_close(table, dense, rtol=1e-5, atol=1e-6)


def test_ftrl_is_algorithm_1_of_the_paper():
    alpha, beta, l1, l2 = 0.3, 0.7, 0.4, 0.05

    def begin(w):
        n = torch.zeros_like(w)
        z = -w * (beta / alpha + l2) - l1 * w.sign()
        z = torch.where(w == 0, 0, z)

        def step(g, touched):
            for i in touched.tolist():
                sigma = ((n[i] + g[i] ** 2).sqrt() - n[i].sqrt()) / alpha
                z[i] += g[i] - sigma * w[i]
                n[i] += g[i] ** 2
                leader = -(z[i] - z[i].sign() * l1) / ((beta + n[i].sqrt()) / alpha + l2)
                w[i] = torch.where(z[i].abs() <= l1, 0, leader)

        step(torch.zeros_like(w), torch.arange(NUM_IDS))  # the step that made the rows
        return step

    table, dense = run(FTRL(alpha, beta, l1, l2), begin)
    torch.testing.assert_close(table, dense, rtol=1e-4, atol=1e-5)
    assert torch.equal(table == 0, dense == 0)
    assert (table == 0).any()


def test_row_adam_is_adam_with_one_second_moment():
    lr, beta1, beta2, eps = 0.1, 0.8, 0.95, 1e-6

    def begin(w):
        m, v, t = torch.zeros_like(w), torch.zeros(NUM_IDS), torch.ones(NUM_IDS)

        def step(g, touched):
            for i in touched.tolist():
                t[i] += 1
                m[i] = beta1 * m[i] + (1 - beta1) * g[i]
                v[i] = beta2 * v[i] + (1 - beta2) * (g[i] ** 2).mean()
                root = (v[i] / (1 - beta2 ** t[i])).sqrt() + eps
                w[i] -= lr * m[i] / (1 - beta1 ** t[i]) / root

        return step

    table, dense = run(RowAdam(lr, beta1, beta2, eps), begin)
    torch.testing.assert_close(table, dense, rtol=1e-4, atol=1e-5)


def test_row_adam_of_one_number_is_adam_of_torch():
    table = GrowingEmbedding(1, RowAdam(lr=0.1))
    weight = torch.nn.Parameter(table._first_vectors(torch.tensor([5])).clone())
    adam = torch.optim.Adam([weight], lr=0.1)
    for value in (1.0, -0.3, 0.2):
        table.learn(torch.tensor([5]), torch.tensor([[value]]))
        weight.grad = torch.tensor([[value]])
        adam.step()
    torch.testing.assert_close(table.eval()(torch.tensor([5])), weight.detach())


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: AdaGrad(lr=0.0), "lr=0.0 of AdaGrad is too small"),
        (lambda: FTRL(l1=-1.0), "l1=-1.0 of FTRL is too small"),
        (lambda: AdaGrad(lr=float("nan")), "lr=nan"),
        (lambda: RowAdam(beta2=1.0), "beta2=1.0 is not below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, found):
    with pytest.raises(ConfigError, match=found):
        make()
