"""Layers that stay in float until the metric of the search holds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepseek.deploy.optimization import preparation
from deepseek.deploy.optimization.preparation import MIXED, Mixing, prepare
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.quantized import QuantizedLayer


@pytest.fixture
def material(digits, tmp_path):
    batch, _ = digits.get_batch(list(range(600, 856)), 0)
    path = tmp_path / "data.safetensors"
    save_file({name: batch[name].contiguous() for name in ("inputs", "targets")}, path)
    return path


def spoil(engine: ModelEngine) -> ModelEngine:
    """Let one layer read numbers of which one is so large that the others share few codes."""
    other = ModelEngine.wrap(engine.module.__class__(**engine.config))
    other.module.load_state_dict(engine.module.state_dict())
    other.bind(engine.spec)
    block = other.module.blocks[0]
    with torch.no_grad():
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        fc1.weight[0], fc1.bias[0] = 0.0, 3000.0
        fc2.weight[:, 0] = 0.0
    return other.eval()


def test_the_layer_that_hurts_is_found_once_for_all_runtimes(engine, digits, material, tmp_path):
    spoilt = spoil(engine)
    batch, _ = digits.get_batch(list(range(64)), 0)
    mixing = Mixing(material, "accuracy", 0.1, tmp_path / "known.json")
    calibration = batch["inputs"].split(32)
    made, kept, _ = prepare(spoilt, "int8_static" + MIXED, calibration, mixing)
    assert "blocks.0.mlp.fc2" in kept
    assert len(kept) < 4
    assert json.loads(mixing.known.read_text()) == kept
    assert not isinstance(made.module.get_submodule(kept[0]), QuantizedLayer)
    again, same, _ = prepare(spoilt, "int8_static" + MIXED, calibration, mixing)
    assert same == kept
    with torch.no_grad():
        assert torch.equal(made(batch["inputs"]), again(batch["inputs"]))


def test_where_int8_holds_in_torch_it_is_said_that_the_runtime_loses(
    engine, digits, material, tmp_path
):
    batch, _ = digits.get_batch(list(range(64)), 0)
    mixing = Mixing(material, "accuracy", 0.5, tmp_path / "known.json")
    with pytest.raises(ConfigError, match="what is lost is lost by the runtime"):
        prepare(engine, "int8_static" + MIXED, [batch["inputs"]], mixing)


def test_what_is_converted_has_fewer_operators_and_that_is_said(digits):
    engine = ModelEngine("resnet", num_layers=8, channels=1, num_classes=10)
    engine.bind(digits.spec)
    batch, _ = digits.get_batch([0, 1, 2], 0)
    mixing = Mixing(Path("none"), "accuracy", 0.1, Path("none"))
    made, kept, fused = prepare(engine.eval(), "", [batch["inputs"]], mixing)
    assert (kept, fused) == ([], ["7 norms folded"])
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in made.module.modules())


def test_a_norm_that_stays_in_a_module_with_a_number_for_a_name_is_not_said_to_be_fused(
    monkeypatch, engine
):
    notes = ("2 norms folded", "1 activations fused", "1 is not folded: something else reads it")
    monkeypatch.setattr(preparation, "fold_norms", lambda engine, probe: (engine, notes))
    mixing = Mixing(Path("none"), "accuracy", 0.1, Path("none"))
    _, _, fused = prepare(engine, "", [torch.zeros(2)], mixing)
    assert fused == ["2 norms folded", "1 activations fused"]
