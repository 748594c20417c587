import pytest
import torch
from torch import nn

from deepseek.models import MultiHead
from deepseek.models.dropout import Dropout, dropout
from deepseek.models.lora import LoraLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_others_scaled(probability, dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(301, 1001, dtype=dtype), probability)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(probability, abs=5 * (probability / y.numel()) ** 0.5 + 1e-5)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - probability)))


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.5) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):  # four elements come from one word
        correlation = 4 * (dropped[distance:] * dropped[:-distance]).mean()
        assert abs(correlation) < 0.01


def test_numbers_follow_from_the_seed_and_gradients_from_the_mask():
    x = torch.randn(7, 5, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x, 0.3)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 1 / 0.7))
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3), y)


def test_the_generator_goes_on_by_as_much_whatever_the_size():
    states = []
    for size in (1, 5, 1000):
        torch.manual_seed(2)
        dropout(torch.ones(size), 0.3)
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything(probability):
    assert torch.equal(dropout(torch.ones(9), probability), torch.full((9,), 1 - probability))


def test_heads_and_adapters_have_it():
    parts = [LoraLinear(nn.Linear(4, 3), 2, 1.0, 0.1)]
    parts.append(MultiHead("resnet", {"num_layers": 8}, {"kind": {"outputs": 3}}, dropout=0.1))
    found = [m for each in parts for m in each.modules() if isinstance(m, nn.Dropout)]
    assert len(found) == 2
    assert all(type(each) is Dropout for each in found)


def test_outside_training_nothing_is_dropped():
    x = torch.randn(4)
    assert Dropout(0.5).eval()(x) is x
