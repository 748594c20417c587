import torch

from deepseek.recsys.tables.row_index import RowIndex


def filled(ids, capacity=None):
    stored = torch.zeros(capacity or len(ids) + 1, dtype=torch.int64)
    stored[1 : len(ids) + 1] = ids
    index = RowIndex(stored, seed=3)
    index.insert(torch.arange(1, len(ids) + 1))
    return index


def test_every_id_has_its_row_and_no_other_one_has_any():
    ids = torch.randint(-(2**63), 2**63 - 1, (20000,)).unique()
    known, unknown = ids[::2], ids[1::2]
    index = filled(known)
    assert index.find(known).tolist() == list(range(1, len(known) + 1))
    assert not index.find(unknown).any()


def test_ids_in_a_row_and_the_ends_of_int64_are_ordinary_ids():
    ids = torch.tensor([0, 1, 2, 3, -1, 2**63 - 1, -(2**63)])
    assert filled(ids).find(ids).tolist() == list(range(1, 8))
    assert filled(ids[1:]).find(torch.tensor([0, 5])).tolist() == [0, 0]


def test_an_id_that_is_there_twice_in_a_batch_is_found_twice():
    index = filled(torch.arange(100))
    assert index.find(torch.tensor([7, 7, 200, 7])).tolist() == [8, 8, 0, 8]


def test_what_is_inserted_bit_by_bit_is_found_as_what_is_inserted_at_once():
    ids = torch.randperm(5000)
    index = filled(ids, capacity=5001)
    other = RowIndex(torch.cat([torch.zeros(1, dtype=torch.int64), ids]), seed=3)
    for rows in torch.arange(1, 5001).split(77):
        other.insert(rows)
    assert torch.equal(index.find(ids), other.find(ids))


def test_no_ids_are_found_in_an_empty_index():
    index = RowIndex(torch.zeros(2, dtype=torch.int64), seed=0)
    assert index.find(torch.tensor([0, 9])).tolist() == [0, 0]
    assert index.find(torch.zeros(0, dtype=torch.int64)).tolist() == []
