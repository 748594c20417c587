import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from deepseek.errors import CheckpointError, ConfigError
from deepseek.recsys.tables import FTRL, AdaGrad, GrowingEmbedding, RowAdam

DIM = 4


def ids_of(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def table_of(*numbers, **options):
    table = GrowingEmbedding(DIM, options.pop("optimizer", None) or AdaGrad(lr=0.1), **options)
    if numbers:
        table.learn(ids_of(*numbers), torch.ones(len(numbers), DIM))
    return table


def vectors(table, ids):
    was, _ = table.training, table.eval()
    found = table(ids)
    table.train(was)
    return found


def random_steps(table, seed, num=30):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num):
        ids = torch.randint(-500, 500, (40,), generator=generator)
        table.learn(ids, torch.randn(40, DIM, generator=generator))


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- looking up and learning -------------------------------------------------------------------


def test_ids_get_rows_in_training_and_none_in_evaluation():
    table = table_of()
    table.eval()
    assert not table(ids_of(1, 2)).any()
    assert len(table) == 0
    table.train()
    assert table(torch.tensor([[1, 2], [3, 1]])).shape == (2, 2, DIM)
    assert len(table) == 3
    with torch.no_grad():
        table(ids_of(99))
    assert len(table) == 3


def test_gradients_go_where_those_of_an_embedding_go():
    """Forward, backward and step, in two micro-batches, beside nn.Embedding with Adagrad."""
    ids = torch.randint(0, 20, (2, 8, 3))
    table = table_of(optimizer=AdaGrad(lr=0.1, eps=1e-10), scale=0.3)
    table(torch.arange(20))
    table.step()
    dense = nn.Embedding(20, DIM, _weight=vectors(table, torch.arange(20)).clone())
    adagrad = torch.optim.Adagrad(dense.parameters(), lr=0.1)
    head = torch.randn(DIM)
    for _ in range(3):
        for part in ids:
            (table(part) @ head).square().sum().backward()
            (dense(part) @ head).square().sum().backward()
        touched = table.step()
        adagrad.step()
        adagrad.zero_grad()
        assert touched == len(ids.unique())
    torch.testing.assert_close(vectors(table, torch.arange(20)), dense.weight.detach())


def test_the_norm_of_a_gradient_is_that_of_the_sums_of_rows():
    """An id that is there twice counts by the sum of both gradients; what is scaled is learnt."""
    table, other = (table_of(optimizer=AdaGrad(lr=0.1, initial_accumulator=1.0)) for _ in "ab")
    for each in (table, other):
        each(ids_of(1, 2, 1)).backward(torch.tensor([[1.0], [2.0], [3.0]]).expand(3, DIM))
        each(ids_of(2)).backward(torch.ones(1, DIM))
    assert float(table.sum_of_squares()) == DIM * (4**2 + 3**2)
    table.scale_gradients(0.5)
    assert float(table.sum_of_squares()) == DIM * (2**2 + 1.5**2)
    assert table.step() == 2
    assert float(table.sum_of_squares()) == 0
    other.drop_gradients()
    other.learn(ids_of(1, 2), torch.tensor([[2.0], [1.5]]).expand(2, DIM))
    assert torch.equal(vectors(table, ids_of(1, 2)), vectors(other, ids_of(1, 2)))


def test_the_first_vector_depends_on_the_id_and_the_seed_alone():
    one, other = table_of(scale=0.2), table_of(scale=0.2)
    one(ids_of(1, 2, 3))
    other(ids_of(77, 3))
    other(ids_of(1))
    assert torch.equal(vectors(one, ids_of(1, 3)), vectors(other, ids_of(1, 3)))
    assert not torch.equal(vectors(one, ids_of(1)), table_of(seed=1, scale=0.2)(ids_of(1)))


def test_first_vectors_have_the_spread_that_was_asked_for():
    first = GrowingEmbedding(8, AdaGrad(), scale=0.05)(torch.arange(20000)).detach()
    assert abs(float(first.std()) - 0.05) < 0.001
    assert abs(float(first.mean())) < 0.001


def test_gradients_that_are_dropped_change_nothing():
    table = table_of(1, 2, scale=0.1)
    before = vectors(table, ids_of(1, 2))
    table(ids_of(1, 2)).sum().backward()
    table.drop_gradients()
    assert table.step() == 0
    assert torch.equal(vectors(table, ids_of(1, 2)), before)


def test_a_forward_pass_that_was_never_gone_backward_from_does_not_count():
    table = table_of(1)
    table(ids_of(1))
    table(ids_of(1)).sum().backward()
    assert table.step() == 1


def test_a_table_stays_on_the_host_and_in_its_precision():
    model = nn.Sequential(table_of(1)).to(torch.float64)
    assert model(ids_of(1)).dtype == torch.float32
    assert not list(model.parameters())


# -- admission and expiry ----------------------------------------------------------------------


def test_rare_ids_share_a_row_until_they_are_frequent():
    table = table_of(admit_after=3)
    for times in (1, 1):
        table.learn(ids_of(*[7] * times, 8), torch.ones(times + 1, DIM))
        assert len(table) == 0
    assert torch.equal(vectors(table, ids_of(7)), vectors(table, ids_of(12345)))
    assert vectors(table, ids_of(7)).any()  # the shared row learns
    table.learn(ids_of(7), torch.ones(1, DIM))
    assert len(table) == 1
    assert not torch.equal(vectors(table, ids_of(7)), vectors(table, ids_of(12345)))


def test_an_id_that_is_frequent_in_one_batch_is_admitted_by_it():
    table = table_of(admit_after=3)
    table.learn(ids_of(5, 5, 5, 6), torch.ones(4, DIM))
    assert len(table) == 1


@pytest.mark.parametrize("optimizer", [AdaGrad(), FTRL(), RowAdam()])
def test_what_expires_begins_anew_with_its_optimizer(optimizer):
    fresh = table_of(optimizer=optimizer, scale=0.1)
    table = copy.deepcopy(fresh)
    for _ in range(5):
        table.learn(ids_of(1, 2), torch.ones(2, DIM))
    assert table.expire(keep=0).tolist() == [1, 2]
    assert len(table) == 0
    for each in (fresh, table):
        each.learn(ids_of(9, 1), torch.ones(2, DIM))
    assert torch.equal(vectors(table, ids_of(1, 9)), vectors(fresh, ids_of(1, 9)))
    assert torch.equal(table.state_dict()["optimizer_state"], fresh.state_dict()["optimizer_state"])


def test_expiry_by_time_and_by_use():
    table = table_of()
    for day, ids in enumerate([(1, 2, 3), (2, 4), (3, 5)]):
        table.learn(ids_of(*ids), torch.ones(len(ids), DIM), now=100 + day)
    kept = vectors(table, ids_of(2, 3))
    assert table.expire(before=101).tolist() == [1]
    assert table.expire(keep=2).tolist() == [2, 4]
    assert torch.equal(vectors(table, ids_of(3)), kept[1:])


def test_the_least_recently_used_go_above_the_maximum():
    table = table_of(max_ids=80)
    for start in range(0, 400, 10):
        table.learn(torch.arange(start, start + 10), torch.ones(10, DIM))
        assert len(table) <= 80
    table(torch.arange(1000, 1100)).sum().backward()
    assert len(table) > 100  # not before the step: gradients wait for these rows
    table.step()
    assert len(table) == 70
    table.learn(ids_of(399), torch.ones(1, DIM))
    assert vectors(table, ids_of(399)).any()
    assert not vectors(table, ids_of(0)).any()


def test_memory_after_expiry_is_that_of_the_ids_left():
    table = GrowingEmbedding(16, AdaGrad())
    for ids in torch.arange(50000).split(5000):
        table.learn(ids, torch.ones(5000, 16))
    table.expire(keep=9000)
    needed = 9000 * (2 * 16 * 4 + 8 + 8)  # vectors and their optimizer, ids, times
    assert needed < table.nbytes <= 1.1 * needed


def test_rows_that_gradients_wait_for_cannot_be_given_up():
    table = table_of(1)
    table(ids_of(1))
    with pytest.raises(ConfigError, match="while gradients wait for a step"):
        table.expire(keep=0)


def test_what_was_seen_in_a_step_that_was_dropped_does_not_count():
    table = table_of(admit_after=2)
    table(ids_of(7)).sum().backward()
    assert not table.state_dict()["seen"].any()
    table.drop_gradients()
    table(ids_of(7)).sum().backward()
    assert table.step() == 1
    assert len(table) == 0
    assert table.state_dict()["seen"].any()


def test_an_id_has_its_row_from_the_step_after_the_one_that_admits_it():
    whole, parts = table_of(admit_after=3), table_of(admit_after=3)
    whole(ids_of(5, 5, 6, 5)).sum().backward()
    for part in ((5, 5), (6, 5)):
        parts(ids_of(*part)).sum().backward()
    assert len(whole) == len(parts) == 0
    for table in (whole, parts):
        assert table.step() == 1  # the shared row
        assert table.state_dict()["ids"].tolist() == [5]
    assert same_state(whole, parts)


# -- state -------------------------------------------------------------------------------------


def test_a_table_that_was_saved_goes_on_bit_for_bit():
    table = table_of(admit_after=2, max_ids=300, capacity=16)
    random_steps(table, 1)
    other = table_of(admit_after=2, max_ids=300)
    other.load_state_dict(load(save(table.state_dict())))
    assert same_state(table, other)
    for each in (table, other):
        random_steps(each, 2)
        each.expire(before=each.clock - 5)
        random_steps(each, 3)
    assert same_state(table, other)


def test_a_table_built_without_memory_is_filled_by_a_state():
    table = table_of(1, 2)
    with torch.device("meta"):
        other = table_of()
    other.load_state_dict(table.state_dict())
    assert same_state(table, other)


def test_a_copy_follows_by_deltas():
    table = table_of(max_ids=400)
    random_steps(table, 1)
    copied = GrowingEmbedding(DIM)  # without an optimizer: it is only read
    copied.load_state_dict(table.state_dict())
    learner = table_of(max_ids=400)
    learner.load_state_dict(table.state_dict())
    for seed in range(2, 6):
        random_steps(table, seed, num=4)
        if seed == 4:
            table.expire(before=table.clock - 6)
        copied.apply_delta(load(save(table.delta(copied.clock))))
        learner.apply_delta(table.delta(learner.clock, with_optimizer=True))
        assert torch.equal(copied.state_dict()["ids"], table.state_dict()["ids"])
        assert torch.equal(copied.state_dict()["weight"], table.state_dict()["weight"])
        assert same_state(learner, table)


def test_a_delta_is_as_small_as_the_change():
    table = table_of(*range(500))
    since = table.clock
    table.learn(ids_of(), torch.zeros(0, DIM))
    table.learn(ids_of(3, 9), torch.ones(2, DIM))
    table.expire(before=0)
    delta = table.delta(since + 1)
    assert delta["ids"].tolist() == [3, 9]
    assert delta["removed"].tolist() == []


def test_an_id_that_went_and_came_back_is_in_a_copy_what_it_is_in_the_table():
    table = table_of(1, 2, scale=0.1)
    copied = GrowingEmbedding(DIM)
    copied.load_state_dict(table.state_dict())
    since = table.clock
    table.expire(keep=0)
    table.learn(ids_of(2), torch.ones(1, DIM))
    copied.apply_delta(table.delta(since))
    assert copied.state_dict()["ids"].tolist() == [2]
    assert torch.equal(vectors(copied, ids_of(1, 2)), vectors(table, ids_of(1, 2)))


def test_deltas_with_a_gap_are_refused():
    table, copied = table_of(1), GrowingEmbedding(DIM)
    table.learn(ids_of(2), torch.ones(1, DIM))
    with pytest.raises(CheckpointError, match="since time 2 does not fit a table of time 0"):
        copied.apply_delta(table.delta(2))
    loaded = table_of()
    loaded.load_state_dict(table.state_dict())
    with pytest.raises(ConfigError, match="since time 1 is not known, only since 2"):
        loaded.delta(1)


def test_old_removals_are_forgotten():
    table = table_of()
    for start in range(0, 6000, 600):
        table.learn(torch.arange(start, start + 600), torch.ones(600, DIM))
        table.expire(keep=10)
    with pytest.raises(ConfigError, match="is not known"):
        table.delta(0)
    assert len(table.delta(table.clock - 1)["removed"]) == 600
    assert len(table.delta(table.clock)["removed"]) == 0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.pop("used"), "it holds clock, ids, optimizer_state, weight, not"),
        (lambda s: s.update(weight=s["weight"][:, :2]), r"weight is \(3, 2\), not \(3, 4\)"),
        (lambda s: s.update(ids=s["ids"].flip(0)), "its ids are not in order"),
        (lambda s: s.update(weight=s["weight"].double()), "weight is of torch.float64, not"),
        (lambda s: s.update(used=s["used"] - 9), "a time is negative"),
        (lambda s: s.pop("optimizer_state"), "it holds clock, ids, used, weight, not"),
    ],
)
def test_a_state_of_another_table_is_refused(change, found):
    state = table_of(1, 2).state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=found):
        table_of().load_state_dict(state)


def test_counts_of_rare_ids_are_part_of_the_state():
    with pytest.raises(CheckpointError, match="no counts of rare ids for admit_after=2"):
        table_of(admit_after=2).load_state_dict(table_of(1).state_dict())


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: GrowingEmbedding(0), "dim=0 is not a positive integer"),
        (lambda: GrowingEmbedding(2, max_ids=0), "max_ids=0"),
        (lambda: table_of(1)(torch.tensor([1.0])), "ids of dtype torch.float32"),
        (lambda: table_of().learn(ids_of(1), torch.ones(1, 9)), r"shape \(1, 9\) were given for 1"),
        (
            lambda: GrowingEmbedding(DIM).learn(ids_of(1), torch.ones(1, DIM)),
            "a table without an optimizer was to learn",
        ),
    ],
)
def test_wrong_uses_are_named(call, found):
    with pytest.raises(ConfigError, match=found):
        call()
