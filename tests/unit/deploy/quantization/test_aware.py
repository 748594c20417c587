import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.deploy import quantization_aware, quantize
from deepseek.deploy.fusion import fuse_engine
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, ResNet
from deepseek.trainer import Callback, Trainer

SETTINGS = {
    "loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "batch_size": 16, "lr": 1e-3,
    "device": "cpu",
}  # fmt: skip


def make_data(*shape):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, *shape, generator=generator)
    return TensorDataset(inputs, (inputs.flatten(1)[:, :3].sum(1) > 0).long())


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 2)).eval()


def train(model, run, data, callbacks=(), **settings):
    settings = {"max_steps": 12, **SETTINGS, **settings}
    Trainer(model, data, run_dir=run, callbacks=callbacks, **settings).fit()
    return model


def test_a_trained_model_computes_what_its_quantised_one_does(tmp_path):
    torch.manual_seed(0)
    data = make_data(3, 8, 8)
    engine = ModelEngine.wrap(ResNet(num_layers=8, num_classes=2))
    train(engine, tmp_path / "float", data, max_steps=4)
    aware = quantization_aware(engine)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in aware.modules())
    names = {name for name, _ in aware.module.named_parameters()}
    assert {"conv1.weight", "conv1.bias", "linear.weight"} <= names
    before = aware.module.conv1.weight.clone()
    train(aware, tmp_path / "aware", data)
    assert not torch.equal(aware.module.conv1.weight, before)
    done = quantize(aware, "int8_static", data)
    assert {layer.name for layer in done.layers if layer.scheme} == {
        name.removesuffix(".weight") for name in names if name.startswith(("conv", "layer"))
        and name.endswith("weight")
    }  # fmt: skip
    inputs = data.tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(done.model(inputs), aware.eval()(inputs), atol=1e-5, rtol=0)
    done.model.save(tmp_path / "small.bin")
    loaded = ModelEngine.load(tmp_path / "small.bin").eval()
    again = ModelEngine.load(tmp_path / "aware" / "model.bin").eval()
    with torch.no_grad():  # the Trainer had its convolutions in channels-last
        torch.testing.assert_close(loaded(inputs), done.model(inputs), atol=1e-3, rtol=0)
        torch.testing.assert_close(again(inputs), done.model(inputs), atol=1e-3, rtol=0)


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    data = make_data(10)
    whole = train(quantization_aware(make_model()), tmp_path / "whole", data, checkpoint_every=4)

    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 5:
                trainer.request_stop("enough")

    run = tmp_path / "cut"
    train(quantization_aware(make_model()), run, data, [Stop()], checkpoint_every=4)
    again = train(quantization_aware(make_model()), run, data, checkpoint_every=4, resume=True)
    for (name, ours), theirs in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_the_gradient_passes_the_rounding_and_stops_at_the_ends():
    aware = quantization_aware(nn.Sequential(nn.Linear(2, 1)))
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    aware(x).backward()
    torch.testing.assert_close(x.grad, aware.module[0].weight, atol=0.01, rtol=0)
    aware.eval()
    far = torch.tensor([[100.0, 0.5]], requires_grad=True)
    aware(far).backward()
    assert far.grad[0, 0] == 0
    assert far.grad[0, 1] != 0


def test_what_cannot_be_trained_so_is_refused(monkeypatch):
    aware = quantization_aware(make_model())
    with pytest.raises(ConfigError, match="was not trained yet"):
        quantize(aware, "int8_static")
    with pytest.raises(ConfigError, match="not as bf16"):
        quantize(aware, "bf16")
    with pytest.raises(ConfigError, match="made ready for it"):
        quantization_aware(aware)
    with pytest.raises(ConfigError, match="keep less"):
        quantization_aware(nn.Sequential(nn.Linear(2, 2)), keep=["0"])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="on 2 ranks"):
        aware.train()(torch.randn(4, 10))


def test_a_folded_engine_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    engine = ModelEngine("timm/resnet10t", num_classes=3).eval()
    inputs = torch.randn(2, 3, 64, 64)
    fused, found = fuse_engine(engine, inputs)
    assert len(found.folded) > 5
    fused.save(tmp_path / "folded.bin")
    loaded = ModelEngine.load(tmp_path / "folded.bin").eval()
    with torch.no_grad():
        assert torch.equal(loaded(inputs), fused(inputs))
        torch.testing.assert_close(loaded(inputs), engine(inputs), atol=1e-4, rtol=0)
