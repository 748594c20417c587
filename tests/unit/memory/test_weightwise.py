"""Steps that are taken weight by weight."""

import pytest
import torch
from torch import nn

from deepseek.errors import ConfigError
from deepseek.memory.weightwise import BackwardUpdate, HostState, WeightwiseOptimizer
from deepseek.parallel.layout import LocalWeights
from deepseek.trainer import OPTIMIZERS, Optimizer
from deepseek.trainer.update import NEEDS_ALL_WEIGHTS

NAMES = sorted(set(OPTIMIZERS.names()) - {*NEEDS_ALL_WEIGHTS})


@pytest.fixture(autouse=True)
def eager():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def make_model(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 3)).to(
        device
    )


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    device = model[0].weight.device
    return model(torch.randn(16, 64, generator=generator).to(device)).square().mean()


def train(model, optimizer, update, first=0, count=3):
    for step in range(first, first + count):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        loss_of(model, step).backward()
        update()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_the_same_step_in_the_backward_pass(name):
    model, twin = make_model(), make_model()
    optimizer, other = Optimizer(name).bind(model), Optimizer(name).bind(twin)
    train(model, optimizer, optimizer.step)
    weightwise = WeightwiseOptimizer(other)
    in_backward = BackwardUpdate(weightwise, LocalWeights([twin]).trained)
    for step in range(3):
        with in_backward.armed(1e-2 / (1 + step)):
            loss_of(twin, step).backward()
        assert all(p.grad is None for p in twin.parameters())
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
    # and goes on in the ordinary way
    train(model, optimizer, optimizer.step, first=3)
    train(twin, other, weightwise.step, first=3)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_norm_is_that_of_the_whole_gradient():
    model, twin = make_model(), make_model()
    loss_of(model, 0).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    weightwise = WeightwiseOptimizer(Optimizer("adamw").bind(twin))
    in_backward = BackwardUpdate(weightwise, LocalWeights([twin]).trained)
    with in_backward.armed(1e-3):
        loss_of(twin, 0).backward()
    torch.testing.assert_close(in_backward.sum_of_squares().sqrt(), expected)


def test_passes_outside_leave_gradients_and_weights_alone():
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    weightwise = WeightwiseOptimizer(Optimizer("adamw").bind(model))
    BackwardUpdate(weightwise, LocalWeights([model]).trained)
    loss_of(model, 0).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_a_gradient_in_two_parts_is_refused_by_name():
    model = make_model()
    weightwise = WeightwiseOptimizer(Optimizer("adamw").bind(model))
    in_backward = BackwardUpdate(weightwise, LocalWeights([model]).trained)
    with in_backward.armed(1e-3):
        loss_of(model, 0).backward()
        with pytest.raises(ConfigError, match=r"3.bias gets its gradient in more than one part"):
            loss_of(model, 1).backward()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion", "sgd"])
def test_an_offloaded_state_lies_in_the_host_and_learns_the_same(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, twin = make_model("cuda"), make_model("cuda")
    optimizer, other = Optimizer(name).bind(model), Optimizer(name).bind(twin)
    train(model, optimizer, optimizer.step)
    train(twin, other, WeightwiseOptimizer(other, HostState()).step)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
        for key, value in other.state[two].items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                assert value.device.type == "cpu"
                assert value.is_pinned()
                assert torch.equal(value, optimizer.state[one][key].cpu())
