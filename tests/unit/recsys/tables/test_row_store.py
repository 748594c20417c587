import random

import torch

from deepseek.recsys.tables.row_store import RowStore


def ids_of(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def test_a_store_is_a_dict_whatever_comes_and_goes():
    """Against a dict, over 150 random turns of adding and removing."""
    random.seed(0)
    store, known = RowStore(2, 2, seed=1), {}
    for turn in range(150):
        new = [i for i in random.sample(range(3000), random.randrange(60)) if i not in known]
        rows = store.add(ids_of(*new), turn)
        store.values[rows] = torch.tensor([[i, turn] for i in new]).float().view(-1, 2)
        known |= dict.fromkeys(new, float(turn))
        old = random.sample(sorted(known), random.randrange(min(len(known) + 1, 70)))
        store.remove(store.find(ids_of(*old)).long())
        for each in old:
            del known[each]
        ids = ids_of(*sorted(known))
        rows = store.find(ids).long()
        assert store.num_ids == len(known)
        assert torch.equal(store.rows(), rows)
        assert store.values[rows].tolist() == [[i, known[i]] for i in sorted(known)]
        assert not store.find(ids_of(*old)).any()


def test_rows_given_up_are_used_again():
    store = RowStore(1, 101, seed=0)
    store.add(torch.arange(100), 0)
    rows = store.find(ids_of(40)).long()
    store.remove(rows)
    assert store.add(ids_of(1000), 1).tolist() == rows.tolist()
    assert store.capacity == 101


def test_memory_doubles_and_goes_back():
    store = RowStore(32, 2, seed=0)
    store.add(torch.arange(5000), 0)
    assert store.capacity == 8192
    store.remove(store.find(torch.arange(4000)).long())
    assert store.capacity == 1001
    assert store.nbytes <= 1.1 * 1000 * (32 * 4 + 8 + 8)
    assert store.find(torch.arange(4000, 5000)).min() >= 1


def test_all_rows_may_go():
    store = RowStore(4, 16, seed=0)
    store.add(torch.arange(10), 0)
    store.remove(store.rows())
    assert store.num_ids == 0
    assert not store.find(torch.arange(10)).any()
    store.add(torch.arange(10), 0)
    assert store.num_ids == 10
