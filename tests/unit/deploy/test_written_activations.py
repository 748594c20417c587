"""Activations as people write them: one kernel where it computes the same, left where not."""

import math

import pytest
import torch
from torch import nn

from deepseek.deploy.fusion import fuse


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Gate(nn.Module):
    """The same with a module inside, written into its input."""

    def __init__(self):
        super().__init__()
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return x.mul_(self.sigmoid(x))


class Erf(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


class Tanh(nn.Module):
    """As in GPT-2."""

    def forward(self, x):
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class HardSwish(nn.Module):
    def forward(self, x):
        return x * nn.functional.relu6(x + 3) / 6


class Mish(nn.Module):
    def forward(self, x):
        return x * torch.tanh(nn.functional.softplus(x))


class SquaredMish(nn.Module):
    """Without `log`: squares of `exp` are large."""

    def forward(self, x):
        square = (1 + torch.exp(x)) ** 2
        return x * (square - 1) / (square + 1)


class CappedReLU(nn.Module):
    """As in models of speech: the same as torch's up to 20."""

    def forward(self, x):
        return torch.relu(x).clamp(max=20)


class CappedSwish(nn.Module):
    def forward(self, x):
        return (x * torch.sigmoid(x)).clamp(max=50.0)


class Position(nn.Module):
    """Adds numbers that are kept from the first call on, and made anew for longer samples."""

    kept = None

    def forward(self, x):
        if self.kept is None or self.kept.shape[1] < x.shape[1]:
            self.kept = torch.arange(x.shape[1], dtype=x.dtype)[None].sin()
        return x + self.kept[:, : x.shape[1]]


class HardGate(nn.Module):
    def forward(self, x):
        return nn.functional.relu6(x + 3) / 6


class Nested(nn.Module):
    """As in MobileNetV3: an activation inside of another."""

    def __init__(self):
        super().__init__()
        self.sigmoid = HardGate()

    def forward(self, x):
        return x * self.sigmoid(x)


class Quick(nn.Module):
    """As in CLIP: torch has no kernel of it."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class OneKernel(nn.Module):
    def forward(self, x):
        return nn.functional.silu(x)


class Softmax(nn.Module):
    def forward(self, x):
        return (x - x.amax(-1, keepdim=True)).softmax(-1)


class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


def model_of(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 4)).eval()


@pytest.mark.parametrize(
    ("activation", "kernel"),
    [
        (Swish, "SiLU"), (Gate, "SiLU"), (Erf, "GELU"), (Tanh, "GELU tanh"),
        (HardSwish, "Hardswish"), (Mish, "Mish"), (SquaredMish, "Mish"), (Nested, "Hardswish"),
    ],
)  # fmt: skip
def test_what_is_an_activation_is_one_kernel(activation, kernel):
    module, inputs = model_of(activation()), torch.randn(5, 8)
    found = fuse(module, inputs)
    assert found.activations == (("1", kernel),)
    assert "1 activations fused" in found.describe()
    assert found.difference < 1e-6
    assert type(found.model[1]).__module__.startswith("torch.nn")
    assert not list(found.model[1].children())
    assert type(module[1]) is activation  # left as it was


@pytest.mark.parametrize(
    "activation",
    [Quick, OneKernel, Softmax, Learnt, CappedReLU, CappedSwish, Position, nn.SiLU],
)
def test_what_is_something_else_or_one_kernel_stays(activation):
    module = model_of(activation())
    found = fuse(module, torch.randn(5, 8))
    assert found.activations == ()
    assert type(found.model[1]) is activation


def test_one_module_in_two_places_is_replaced_in_both():
    swish = Swish()
    module = nn.Sequential(nn.Linear(8, 8), swish, nn.Linear(8, 8), swish).eval()
    found = fuse(module, torch.randn(3, 8))
    assert found.activations == (("1", "SiLU"), ("3", "SiLU"))


def test_a_module_that_others_look_into_stays():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = Swish()
            self.act.limit = 2.0

        def forward(self, x):
            return self.act(x).clamp(max=self.act.limit)

    found = fuse(nn.Sequential(Looking()).eval(), torch.randn(3, 8))
    assert found.activations == ()
    assert isinstance(found.model[0].act, Swish)
