"""What a graph keeps is read off it, compiled or not."""

import pytest
import torch
from torch import nn

from deepseek.memory.graph_bytes import count_kept_bytes


def kept_by(model, inputs):
    loss = model(inputs).square().sum()
    return count_kept_bytes(loss, [inputs])


def test_it_is_what_operations_have_saved():
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    # what GELU takes, what the second linear takes, and the square; weights and inputs are given
    assert kept_by(model, torch.randn(16, 8)) == 4 * 16 * (32 + 32 + 4)


def test_a_custom_function_is_asked_for_its_own():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clone(), x)
            return 2 * x

    inputs = torch.randn(10, requires_grad=True)
    assert count_kept_bytes(Doubled.apply(inputs).sum(), []) == 40


@pytest.mark.long
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_compiled_graph_keeps_what_its_budget_says(share):
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    inputs = torch.randn(16, 8)
    with torch._functorch.config.patch(activation_memory_budget=share):
        compiled = torch.compile(
            lambda x: model(x).square().sum() + share, fullgraph=True, dynamic=False
        )
        kept = count_kept_bytes(compiled(inputs), [inputs])
    assert kept == kept_by(model, inputs) if share else kept < kept_by(model, inputs)
