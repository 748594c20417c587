"""What every architecture of ours must do, whatever it is."""

import re
import warnings

import pytest
import torch
from torch import nn

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, list_models
from deepseek.models.zoo import ARCHITECTURES

SMALL = {
    "vit": {"image_size": 16, "patch_size": 8, "num_layers": 2, "dim": 24, "heads": 3},
    "resnet": {"num_layers": 8, "width": 4},
    "imagenet_resnet": {"depths": (1, 1, 1, 1), "block": "basic"},
    "encoder": {"vocab_size": 11, "context_length": 8, "num_layers": 2, "dim": 24, "heads": 3},
}
SHRUNK = {"image_size": 16, "patch_size": 8, "num_layers": 2, "dim": 24, "heads": 3}
OWN = [name for name in list_models(own_only=True) if not name.startswith("gpt")]
IMAGE_MODELS = [name for name in OWN if not name.startswith("encoder")]


def small_args(name):
    if name in SMALL:
        return SMALL[name]
    if name.startswith("encoder"):
        return SMALL["encoder"]
    return SHRUNK if name.startswith("vit") else SMALL["resnet"]


def make_engine(name, num_classes=5):
    torch.manual_seed(0)
    engine = ModelEngine(name, num_classes=num_classes, **small_args(name))
    for parameter in engine.parameters():  # heads begin at zero, which hides everything before
        nn.init.normal_(parameter, std=0.1)
    return engine


def make_inputs(name, batch_size=2):
    if name in IMAGE_MODELS:
        return torch.randn(batch_size, 3, 16, 16)
    return torch.randint(0, 11, (batch_size, 8))


def make_spec_for(name, num_classes=5):
    if name in IMAGE_MODELS:
        return make_spec(num_classes)
    return DataSpec(
        task="classification",
        fields={"inputs": FieldSpec((8,), "int64")},
        class_names=tuple(f"class{i}" for i in range(num_classes)),
        class_counts=(1,) * num_classes,
    )


def make_spec(num_classes=5, size=16, channels=3):
    return DataSpec(
        task="classification",
        fields={"inputs": FieldSpec((channels, size, size), "uint8")},
        class_names=tuple(f"class{i}" for i in range(num_classes)),
        class_counts=(1,) * num_classes,
        transform=f"resize_{size}",
        normalization=IMAGENET if channels == 3 else None,
    )


@pytest.fixture(params=OWN)
def name(request):
    return request.param


@pytest.fixture(params=IMAGE_MODELS)
def image_model(request):
    return request.param


def test_outputs_have_a_row_per_sample_and_every_weight_a_gradient(name):
    engine = make_engine(name)
    logits = engine(make_inputs(name))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for parameter_name, parameter in engine.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_channels_last_gives_the_same_numbers(image_model):
    engine = make_engine(image_model).eval()
    images = torch.randn(2, 3, 16, 16)
    want = engine(images)
    engine.to(memory_format=torch.channels_last)
    got = engine(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_state_survives_a_file(name, tmp_path):
    engine = make_engine(name).eval()
    engine.bind(make_spec_for(name))
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin").eval()
    inputs = make_inputs(name)
    if name in IMAGE_MODELS:
        inputs = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded(inputs), engine(inputs))
    assert loaded.spec == engine.spec
    assert loaded.config == engine.config
    assert loaded.architecture == name
    assert all(p.requires_grad for p in loaded.parameters())
    loaded.train()(inputs).sum().backward()


def test_config_builds_the_same_model(name):
    engine = make_engine(name)
    again = ARCHITECTURES.get(name).build(**engine.config)
    assert again.config == engine.config
    shapes = {key: value.shape for key, value in engine.module.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_hints_name_real_parts(name):
    module = make_engine(name).module
    hints = module.hints
    for part in (*hints.blocks, *hints.embeddings, *hints.head):
        module.get_submodule(part)
    for block in (
        block for part in hints.blocks for block in module.get_submodule(part).children()
    ):
        for linear in (*hints.column_linears, *hints.row_linears):
            assert isinstance(block.get_submodule(linear), nn.Linear)
        for linear, groups in hints.fused_heads:
            assert block.get_submodule(linear).out_features % (groups * hints.heads) == 0
    parameters = dict(module.named_parameters())
    assert set(hints.no_weight_decay) <= set(parameters)
    assert isinstance(module.get_submodule(hints.head[-1]), nn.Linear)


def test_head_is_learnt_from_the_data(name):
    engine = make_engine(name, num_classes=None)
    with pytest.raises(ConfigError, match=r"num_classes=None(.|\n)*Fix: give num_classes"):
        engine(make_inputs(name))
    engine.bind(make_spec_for(name, num_classes=7))
    assert engine(make_inputs(name)).shape == (2, 7)
    assert engine.config["num_classes"] == 7
    with pytest.raises(ConfigError, match="num_classes=7, the data 4 classes"):
        engine.bind(make_spec_for(name, num_classes=4))


def test_images_that_do_not_fit_are_refused_with_both_shapes(image_model):
    engine = make_engine(image_model)
    with pytest.raises(ConfigError, match=r"images 1x16x16 .*takes 3x"):
        engine.bind(make_spec(channels=1))


def test_export_takes_any_batch_size_and_gives_the_same_numbers(name):
    if name not in SMALL:
        pytest.skip("the class is exported under its own name")
    module = make_engine(name).module.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        program = torch.export.export(module, (make_inputs(name),), dynamic_shapes=({0: batch},))
    inputs = make_inputs(name, batch_size=5)
    torch.testing.assert_close(program.module()(inputs), module(inputs), atol=1e-5, rtol=1e-4)


def test_flops_are_counted_without_touching_the_model(image_model):
    engine = make_engine(image_model).train()
    before = {key: value.clone() for key, value in engine.state_dict().items()}
    assert engine.flops((3, 16, 16)) > 0
    assert engine.training
    assert all(torch.equal(value, before[key]) for key, value in engine.state_dict().items())
    assert re.search(r"M parameters, 5 classes", engine.describe())
