import torch

from deepseek.recsys.tables.admission import SeenCounts


def test_counts_are_never_too_small_and_mostly_right():
    counts = SeenCounts(1 << 12, seed=0)
    ids, times = torch.arange(1000) * 7919, torch.randint(1, 9, (1000,))
    counts.add(ids, times)
    found = counts.add(ids, torch.zeros_like(times))
    assert (found >= times).all()
    assert (found == times).float().mean() > 0.95


def test_ageing_halves():
    counts = SeenCounts(64, seed=0)
    counts.add(torch.tensor([5]), torch.tensor([9]))
    counts.age()
    assert counts.add(torch.tensor([5]), torch.tensor([0])).tolist() == [4]
