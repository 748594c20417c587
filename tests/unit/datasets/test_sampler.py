import numpy as np
import pytest

from deepseek.datasets.sampler import BatchKeys, Progress, epoch_order


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
    whole = [index for _, indices in keys for index in indices]
    assert len(whole) == keys.num_handed_out == (20 if drop_last else 23)
    assert len(keys) == (5 if drop_last else 6)
    keys = BatchKeys(23, 4, True, drop_last, 7, Progress(0, position))
    assert [index for _, indices in keys for index in indices] == whole[position:]


def test_the_epoch_travels_with_the_keys():
    assert {epoch for epoch, _ in BatchKeys(8, 4, True, False, 0, Progress(5, 0))} == {5}
