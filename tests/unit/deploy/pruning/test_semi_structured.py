import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.deploy import KeepZeros, prune, use_sparse_kernels
from deepseek.deploy.pruning.semi_structured import mask_two_of_four
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Trainer

QUIET = {
    "loggers": ("jsonl",), "num_workers": 0, "precision": "fp32", "batch_size": 16, "lr": 3e-3,
    "device": "cpu",
}  # fmt: skip
IMAGES = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, torch.arange(64) % 5)


def make_pruned():
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, num_classes=5)
    return prune(engine, pattern="2:4", inputs=IMAGES[:2], latency=False)


def zeros_in_four(weight):
    return (weight == 0).unflatten(1, (-1, 4)).sum(2)


def test_the_two_smallest_of_four_go():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.1, -0.2, 0.3]])
    expected = torch.tensor([[False, True, True, False, False, False, True, True]])
    assert torch.equal(mask_two_of_four(weight), expected)
    filters = torch.randn(6, 8, 3, 3)
    kept = mask_two_of_four(filters)
    assert kept.shape == filters.shape
    assert (kept.unflatten(1, (2, 4)).sum(2) == 2).all()


def test_all_layers_but_the_first_and_the_head_have_the_pattern():
    pruned = make_pruned()
    assert len(pruned.zeroed) == 6
    for name in pruned.zeroed:
        weight = pruned.model.module.get_parameter(f"{name}.weight")
        assert (zeros_in_four(weight) == 2).all()
    assert not (pruned.model.module.conv1.weight == 0).any()  # three channels
    assert not (pruned.model.module.linear.weight == 0).any()
    assert pruned.after.flops == pruned.before.flops
    assert "make nothing faster" in pruned.describe()


def train(pruned, run, callbacks=(), **settings):
    callbacks = [KeepZeros(), *callbacks]
    trainer = Trainer(
        pruned.model, DATA, run_dir=run, callbacks=callbacks,
        **{"max_steps": 6, **QUIET, **settings},
    )  # fmt: skip
    trainer.fit()
    return pruned.model, callbacks[0]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_pattern_stays_in_training_and_in_a_run_that_is_resumed(tmp_path, channels_last):
    class Stop(Callback):
        def on_step_end(self, trainer, result):
            if trainer.step == 3:
                trainer.request_stop("enough")

    settings = {"channels_last": channels_last, "checkpoint_every": 1, "ema_decay": 0.9}
    before = make_pruned()
    masks = {n: before.model.module.get_parameter(f"{n}.weight") != 0 for n in before.zeroed}
    whole, callback = train(make_pruned(), tmp_path / "whole", **settings)
    for name, mask in masks.items():
        weight = whole.module.get_parameter(f"{name}.weight")
        assert torch.equal(weight != 0, mask)
    assert not torch.equal(
        whole.module.layer1[0].conv1.weight, before.model.module.layer1[0].conv1.weight
    )
    assert "% of the weights are zero" in callback.describe()
    train(make_pruned(), tmp_path / "cut", [Stop()], **settings)
    again, _ = train(make_pruned(), tmp_path / "cut", resume=True, **settings)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_without_zeros_is_refused(tmp_path):
    engine = ModelEngine("resnet", num_layers=8, num_classes=5)
    trainer = Trainer(
        engine, DATA, run_dir=tmp_path / "run", callbacks=[KeepZeros()], max_steps=1, **QUIET
    )
    with pytest.raises(ConfigError, match="no weight of the model is zero"):
        trainer.fit()


def test_widths_that_four_does_not_divide_are_refused():
    with pytest.raises(ConfigError, match="whose inputs four divides"):
        prune(nn.Linear(6, 5), pattern="2:4", inputs=torch.randn(2, 6), latency=False)


def test_on_a_processor_it_is_said_that_nothing_becomes_faster():
    with pytest.raises(ConfigError, match="make nothing faster here"):
        use_sparse_kernels(make_pruned().model)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
def test_a_gpu_computes_the_same_with_its_sparse_kernels():
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of compute capability 8.0 or more")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))
    inputs = torch.randn(64, 128)
    engine = prune(model, pattern="2:4", inputs=inputs, latency=False).model
    engine = engine.to("cuda", torch.float16).eval()
    with torch.no_grad():
        expected = engine(inputs.cuda().half())
        assert use_sparse_kernels(engine) == ("0", "2")
        torch.testing.assert_close(engine(inputs.cuda().half()), expected, atol=1e-2, rtol=1e-2)
