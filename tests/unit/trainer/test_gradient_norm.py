import pytest
import torch

from deepseek.trainer.gradient_norm import total_norm


def test_the_norm_is_that_of_all_gradients_together():
    torch.manual_seed(0)
    grads = [torch.randn(30, 7), torch.randn(5), torch.randn(4, 3, 3, 3)]
    expected = torch.cat([grad.flatten() for grad in grads]).double().norm()
    assert total_norm(grads).item() == pytest.approx(expected.item(), rel=1e-6)
    grads[2] = grads[2].to(memory_format=torch.channels_last)
    assert total_norm(grads).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value):
    assert not torch.isfinite(total_norm([torch.ones(3), torch.tensor([1.0, value])]))
