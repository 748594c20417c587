import numpy as np
import pytest

from deepseek.datasets.sampler import BatchKeys, Progress, epoch_order, share_of


def test_order_is_a_permutation_of_seed_and_epoch():
    orders = {
        (seed, epoch): epoch_order(50, seed, epoch, shuffle=True)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(50))
    assert len({order.tobytes() for order in orders.values()}) == 4
    assert np.array_equal(orders[0, 1], epoch_order(50, 0, 1, shuffle=True))
    assert epoch_order(5, 0, 1, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("position", [0, 4, 20, 23])
def test_keys_go_on_from_a_position(position, drop_last):
    keys = BatchKeys(23, 4, True, drop_last, 7)
    whole = [index for key in keys for index in key.indices]
    assert len(whole) == keys.num_handed_out == (20 if drop_last else 23)
    assert len(keys) == (5 if drop_last else 6)
    keys = BatchKeys(23, 4, True, drop_last, 7, Progress(0, position))
    assert [index for key in keys for index in key.indices] == whole[position:]


def test_the_epoch_travels_with_the_keys():
    assert {key.epoch for key in BatchKeys(8, 4, True, False, 0, Progress(5, 0))} == {5}


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
def test_parts_of_a_batch_are_the_batch_and_differ_by_one_sample(num_parts):
    whole = [key.indices for key in BatchKeys(23, 4, True, False, 7)]
    parts = [
        list(BatchKeys(23, 4, True, False, 7, share=(part, num_parts))) for part in range(num_parts)
    ]
    for keys in zip(*parts, strict=True):
        sizes = [len(key.indices) for key in keys]
        assert max(sizes) - min(sizes) <= 1
        assert {key.num_samples for key in keys} == {sum(sizes)}
    joined = [[i for key in keys for i in key.indices] for keys in zip(*parts, strict=True)]
    assert joined == whole
    assert share_of(4, num_parts - 1, num_parts)[1] == 4


def test_batches_of_similar_length_are_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 500, 1003)
    orders = {
        epoch: [key.indices for key in BatchKeys(1003, 10, True, False, 7, Progress(epoch),
                                                 lengths=lengths)]
        for epoch in (0, 1)
    }  # fmt: skip
    for batches in orders.values():
        assert sorted(i for batch in batches for i in batch) == list(range(1003))
        spreads = [np.ptp(lengths[batch]) for batch in batches[:-1]]
        assert np.mean(spreads) < 40
        means = [lengths[batch].mean() for batch in batches]
        assert means != sorted(means)
    assert orders[0] != orders[1]
    later = BatchKeys(1003, 10, True, False, 7, Progress(0, 400), lengths=lengths)
    assert [key.indices for key in later] == orders[0][40:]
