import pytest
import torch
from torch import nn

from deepseek.convert.verify import compare_modules
from deepseek.deploy.fusion import largest_difference
from deepseek.deploy.pruning.groups import find_groups
from deepseek.models import ModelEngine
from deepseek.models.full_float32 import full_float32

PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def precisions():
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


class Asking(nn.Conv2d):
    """A convolution that notes how a GPU would compute it."""

    asked: list = []  # noqa: RUF012 (copies of the module share it)
    pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012 (as timm's models have it)

    def forward(self, input):
        self.asked.append(precisions())
        return super().forward(input)


@pytest.mark.parametrize("wanted", ["highest", "high"])
def test_float32_is_whole_for_a_while_and_then_as_it_was(wanted):
    products, before = torch.backends.cuda.matmul, precisions()
    try:
        torch.set_float32_matmul_precision(wanted)
        told = precisions()
        with full_float32():
            assert precisions() == ("ieee", "ieee")
        assert precisions() == told
        assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.set_float32_matmul_precision("highest")
        products.fp32_precision = before[1]
    assert precisions() == before


@pytest.mark.parametrize(
    "compare",
    [
        lambda: largest_difference(*[Asking(3, 4, 3)] * 2, PICTURES),
        lambda: compare_modules(Asking(3, 4, 3), Asking(3, 4, 3), {}),
    ],
    ids=["fusion", "conversion"],
)
def test_models_are_compared_in_whole_float32(compare):
    Asking.asked.clear()
    compare()
    assert set(Asking.asked) == {("ieee", "ieee")}


def test_what_pruning_tries_is_computed_in_whole_float32():
    pytest.importorskip("torch_pruning")
    Asking.asked.clear()
    module = nn.Sequential(Asking(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(2))
    engine = ModelEngine.wrap(module)
    groups, _ = find_groups(engine, PICTURES)
    assert groups
    assert Asking.asked[-1] == ("ieee", "ieee")
