import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deepseek.errors import ConfigError
from deepseek.parallel.layout import LocalWeights
from deepseek.trainer import OPTIMIZERS, Optimizer


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_lowers_the_loss_and_restores_its_state(name, tmp_path):
    from deepseek.checkpoint import StoredTensors, join_state, split_state

    torch.manual_seed(1)
    inputs, labels = torch.randn(32, 4), torch.randint(0, 3, (32,))

    def step(model, optimizer):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    model = make_model()
    optimizer = Optimizer(name).bind(model)
    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0]

    twin = make_model()
    twin.load_state_dict(model.state_dict())
    twin_optimizer = Optimizer(name).bind(twin)
    weights = LocalWeights([model])
    parts, rest = split_state(optimizer, weights.named(), weights.cut)
    save_file({part.key: part.tensor.contiguous() for part in parts}, tmp_path / "state")
    twins = LocalWeights([twin])
    stored = StoredTensors([tmp_path / "state"])
    join_state(twin_optimizer, twins.named(), twins.cut, stored, json.loads(json.dumps(rest)))
    for _ in range(3):
        assert step(model, optimizer) == step(twin, twin_optimizer)


def test_norms_and_biases_get_no_weight_decay():
    groups = Optimizer("adamw", weight_decay=0.1).bind(make_model()).param_groups
    decayed, plain = groups
    assert decayed["weight_decay"] == 0.1
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert plain["weight_decay"] == 0
    assert len(plain["params"]) == 4


def test_adam_is_fused_on_the_cpu():
    assert Optimizer("adam").bind(make_model()).param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "adamv"}, "adamw"),
        ({"algorithm": "sgd", "betas": (0.9, 0.99)}, "has no betas"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_bad_recipes_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Optimizer(**arguments)


def test_a_frozen_model_is_refused():
    model = make_model().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        Optimizer("adam").bind(model)
