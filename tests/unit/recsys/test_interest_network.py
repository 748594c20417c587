import pytest
import torch

from deepseek.recsys.interest_network import Dice


@pytest.fixture
def dice():
    """Dice that has seen rows."""
    torch.manual_seed(0)
    made = Dice(3)
    for _ in range(50):
        made(2 + 3 * torch.randn(20, 3))
    return made


@pytest.mark.parametrize("num_rows", [0, 1])
def test_dice_learns_no_moments_of_one_row_or_none(dice, num_rows):
    before = {name: each.clone() for name, each in dice.state_dict().items()}
    x = torch.randn(4, 3, requires_grad=True)
    counts = torch.arange(4) < num_rows
    for found in (dice(x, counts), dice(x[:num_rows])):
        dice.eval()
        assert torch.equal(found, dice(x[: len(found)]))  # by the running ones
        dice.train()
    dice(x[:1]).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.equal(before[name], each) for name, each in dice.state_dict().items())


def test_dice_learns_the_moments_of_rows_that_are_there():
    dice, x = Dice(3), torch.randn(4, 3)
    dice(x, torch.tensor([True, True, True, False]))
    torch.testing.assert_close(dice.mean, 0.1 * x[:3].mean(0))
    torch.testing.assert_close(dice.variance, 0.9 + 0.1 * x[:3].var(0, correction=0))
