"""What every architecture of ours must do, whatever it is."""

import json
import math
import re
import warnings

import pytest
import torch
from torch import nn

from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.datasets.transforms import IMAGENET
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, list_models
from deepseek.models.classifier import BlockModel
from deepseek.models.table_model import TableModel
from deepseek.models.zoo import ARCHITECTURES

TOKENS = {"context_length": 8, "num_layers": 2, "dim": 24, "heads": 3}
# Arguments, and one that is wrong with what the error says.
SMALL = {
    "vit": {"image_size": 16, "patch_size": 8, "num_layers": 2, "dim": 24, "heads": 3},
    "resnet": {"num_layers": 8, "width": 4},
    "imagenet_resnet": {"depths": (1, 1, 1, 1), "block": "basic"},
    "encoder": {"vocab_size": 11, **TOKENS},
    "gpt": TOKENS,
    "llama": {**TOKENS, "dim": 32, "heads": 4, "kv_heads": 2, "qkv_bias": True},
    "unet3d": {"features": [4, 6, 8], "blocks": 1, "strides": [[1, 2, 2], [2, 2, 2]]},
    "center_detector3d": {"features": [4, 6, 8], "blocks": 1},
}
WRONG = {
    "center_detector3d": [
        ({"skipped_levels": 2}, "skipped_levels=2 of 3.*\n.*give 4 levels or more"),
        ({"features": [4, 8]}, r"give 3 levels or more, .* or skipped_levels=0"),
        ({"features": [4]}, r"features=\[4\]"),
        ({"channels": 0}, "channels=0"),
    ],
    "vit": [({"patch_size": 5}, "patch_size=5"), ({"heads": 7}, "heads=7")],
    "resnet": [({"num_layers": 9}, "num_layers=9"), ({"width": 0}, "width=0")],
    "imagenet_resnet": [({"depths": (1, 1)}, "are not four"), ({"groups": 2}, "has none")],
    "encoder": [({"heads": 5}, "heads=5"), ({"pad_token": 11}, "pad_token=11")],
    "gpt": [({"heads": 5}, "heads=5"), ({"dropout": 1.0}, "dropout=1.0")],
    "llama": [
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"heads": 5, "kv_heads": 5}, "heads=5 does not divide dim=32"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"rope_theta": 1}, "rope_theta=1"),
        ({"rope_scaling": {"factor": 2.0}}, "missing=.'low_freq_factor'"),
        ({"hidden_dim": -1}, "hidden_dim=-1"),
    ],
    "unet3d": [
        ({"features": [4]}, r"features=\[4\]"),
        ({"blocks": [1, 1]}, "blocks has 2 entries where 3"),
        ({"strides": [[1, 2], [2, 2, 2]]}, r"strides has \[1, 2\]"),
        ({"kernels": [[2, 3, 3]] * 3}, "not all odd"),
        ({"features": [4, 0, 8]}, "features=0"),
        ({"channels": 0}, "channels=0"),
    ],
}
SHAPES = {
    "vit": (3, 16, 16),
    "resnet": (3, 16, 16),
    "imagenet_resnet": (3, 16, 16),
    "unet3d": (1, 4, 8, 8),
    "center_detector3d": (1, 8, 8, 8),
}
IMAGE_MODELS = ["vit", "resnet", "imagenet_resnet"]
LANGUAGE_MODELS = ["gpt", "llama"]


def is_class(name):
    """Whether a name is that of a class; models of tables take no one tensor."""
    entry = ARCHITECTURES.get(name)
    return not entry.preset and not issubclass(entry.build, TableModel)


def make_engine(name, num_classes=5, **args):
    torch.manual_seed(0)
    engine = ModelEngine(name, num_classes=num_classes, **SMALL[name], **args)
    for parameter in engine.parameters():  # heads begin at zero, which hides everything before
        nn.init.normal_(parameter, std=0.1)
    return engine


def make_inputs(name, batch_size=2):
    if name in SHAPES:
        return torch.randn(batch_size, *SHAPES[name])
    return torch.randint(0, 5, (batch_size, 8))


def output_shape(name, batch_size=2, num_classes=5):
    if name in LANGUAGE_MODELS:
        return (batch_size, 8, num_classes)
    if name == "unet3d":
        return (batch_size, num_classes, *SHAPES[name][1:])
    if name == "center_detector3d":
        return (batch_size, num_classes + 1, 4, 4, 4)
    return (batch_size, num_classes)


def make_spec(name, num_classes=5, channels=None):
    shape = SHAPES.get(name, (8,))
    if channels is not None:
        shape = (channels, *shape[1:])
    is_image = name in IMAGE_MODELS
    return DataSpec(
        task="classification",
        fields={"inputs": FieldSpec(shape, "uint8" if is_image else "int64")},
        class_names=tuple(f"class{i}" for i in range(num_classes)),
        class_counts=(1,) * num_classes,
        transform=f"resize_{shape[-1]}" if is_image else None,
        normalization=IMAGENET if is_image and shape[0] == 3 else None,
    )


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


@pytest.fixture(params=IMAGE_MODELS)
def image_model(request):
    return request.param


def test_every_class_of_the_zoo_is_under_contract():
    own = [name for name in list_models(own_only=True) if is_class(name)]
    # several heads are no set of classes: test_multi_head.py
    assert own == sorted([*SMALL, "multi_head"])


def test_outputs_have_a_row_per_sample_and_every_weight_a_gradient(name):
    engine = make_engine(name)
    logits = engine(make_inputs(name))
    assert logits.shape == output_shape(name)
    logits.square().sum().backward()
    for parameter_name, parameter in engine.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


def test_the_samples_of_a_batch_do_not_meet(name):
    engine, inputs = make_engine(name).eval(), make_inputs(name, 3)
    alone = torch.cat([engine(sample[None]) for sample in inputs])
    torch.testing.assert_close(engine(inputs), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
def test_no_token_sees_those_after_it(language_model, grad):
    engine, tokens = make_engine(language_model).eval(), make_inputs(language_model)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 5
    with torch.set_grad_enabled(grad):  # two implementations of attention
        before, after = engine(tokens), engine(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_channels_last_gives_the_same_numbers(image_model):
    engine = make_engine(image_model).eval()
    images = make_inputs(image_model)
    want = engine(images)
    engine.to(memory_format=torch.channels_last)
    got = engine(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_state_survives_a_file(name, tmp_path):
    engine = make_engine(name).eval()
    engine.bind(make_spec(name))
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin").eval()
    inputs = make_inputs(name)
    if name in IMAGE_MODELS:
        inputs = torch.randint(0, 256, inputs.shape, dtype=torch.uint8)
    assert torch.equal(loaded(inputs), engine(inputs))
    assert loaded.spec == engine.spec
    assert loaded.config == engine.config
    assert loaded.architecture == name
    assert all(p.requires_grad for p in loaded.parameters())
    loaded.train()(inputs).sum().backward()


def test_config_is_json_and_builds_the_same_model(name):
    engine = make_engine(name)
    config = json.loads(json.dumps(engine.config))
    again = ARCHITECTURES.get(name).build(**config)
    assert again.config == engine.config == config
    again.load_state_dict(engine.module.state_dict())
    inputs = make_inputs(name)
    assert torch.equal(again.eval()(inputs), engine.eval()(inputs))


def test_a_cast_to_bfloat16_computes_nearly_the_same(name):
    engine, inputs = make_engine(name).eval(), make_inputs(name)
    want = engine(inputs)
    engine.to(torch.bfloat16)
    got = engine(inputs.bfloat16() if inputs.is_floating_point() else inputs)
    assert got.dtype is torch.bfloat16
    assert (got.float() - want).norm() < 0.03 * want.norm()


def test_hints_name_real_parts_and_every_linear_of_a_block(name):
    module = make_engine(name).module
    hints = module.hints
    for part in (*hints.blocks, *hints.embeddings, *hints.head):
        module.get_submodule(part)
    lists = [module.get_submodule(part) for part in hints.blocks]
    assert lists, "nothing to recompute, shard or compile as one"
    known = {*hints.column_linears, *hints.row_linears}
    for block in (block for each in lists for block in each.children()):
        linears = {key for key, part in block.named_modules() if isinstance(part, nn.Linear)}
        assert linears == known
        for linear, groups in hints.fused_heads:
            assert block.get_submodule(linear).out_features % (groups * hints.heads) == 0
    assert set(hints.no_weight_decay) <= set(dict(module.named_parameters()))
    assert isinstance(module.get_submodule(hints.head[-1]), nn.Linear | nn.Conv3d)


def test_embeddings_blocks_and_head_of_a_row_of_blocks_are_all_of_it(name):
    module = make_engine(name).module
    if not isinstance(module, BlockModel):
        pytest.skip("no row of blocks")
    hints = module.hints
    parts = (*hints.blocks, *hints.embeddings, *hints.head)
    for key, _ in module.named_parameters():
        is_own = "." not in key  # a parameter of the model itself belongs to the embeddings
        assert is_own or key.startswith(tuple(f"{part}." for part in parts)), key


def test_head_is_learnt_from_the_data(name):
    engine = make_engine(name, num_classes=None)
    with pytest.raises(ConfigError, match=r"num_classes=None(.|\n)*Fix: give num_classes"):
        engine(make_inputs(name))
    engine.bind(make_spec(name, num_classes=7))
    assert engine(make_inputs(name)).shape == output_shape(name, num_classes=7)
    assert engine.config["num_classes"] == 7
    with pytest.raises(ConfigError, match="num_classes=7, the data 4 classes"):
        engine.bind(make_spec(name, num_classes=4))


def test_wrong_arguments_are_refused_by_name(name):
    for wrong, message in WRONG[name]:
        with pytest.raises(ConfigError, match=message):
            ModelEngine(name, num_classes=5, **{**SMALL[name], **wrong})
    with pytest.raises(ConfigError, match="unknown argument widht=3"):
        ModelEngine(name, num_classes=5, **SMALL[name], widht=3)


def test_images_that_do_not_fit_are_refused_with_both_shapes(image_model):
    engine = make_engine(image_model)
    with pytest.raises(ConfigError, match=r"images 1x16x16 .*takes 3x"):
        engine.bind(make_spec(image_model, channels=1))


def test_export_takes_any_batch_size_and_gives_the_same_numbers(name):
    module = make_engine(name).module.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        program = torch.export.export(module, (make_inputs(name),), dynamic_shapes=({0: batch},))
    for batch_size in (3, 5):
        inputs = make_inputs(name, batch_size)
        torch.testing.assert_close(program.module()(inputs), module(inputs), atol=1e-5, rtol=1e-4)


def test_flops_are_counted_without_touching_the_model(name):
    engine = make_engine(name).train()
    before = {key: value.clone() for key, value in engine.state_dict().items()}
    assert engine.flops(make_inputs(name).shape[1:]) > 0
    assert engine.training
    assert all(torch.equal(value, before[key]) for key, value in engine.state_dict().items())
    assert re.search(r"M parameters, 5 classes", engine.describe())


# -- how weights begin ------------------------------------------------------------------------

WIDE = {"context_length": 64, "num_layers": 2, "dim": 128, "heads": 4}
NORMAL = {"blocks.0.attn.proj": 0.01, "blocks.1.fc2": 0.01, "blocks.1.mlp.down": 0.01}
BEGINNINGS = {
    # normal, 0.02; branches end with 0.02 / sqrt(2 num_layers)
    "gpt": (WIDE, lambda name, weight: NORMAL.get(name.removesuffix(".weight"), 0.02)),
    "llama": (WIDE, lambda name, weight: NORMAL.get(name.removesuffix(".weight"), 0.02)),
    "encoder": ({**WIDE, "vocab_size": 99}, lambda name, weight: 0.02),
    # He et al. 2015, arXiv 1502.01852: sqrt(2 / fan)
    "resnet": ({}, lambda name, weight: math.sqrt(2 / (weight.shape[0] * 9))),
    "unet3d": (
        {"features": [16, 32]},
        lambda name, weight: math.sqrt(2 / (1 + 0.01**2) / weight[0].numel()),
    ),
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_weights_begin_as_the_paper_says(kind):
    torch.manual_seed(0)
    args, expected = BEGINNINGS[kind]
    engine = ModelEngine(kind, num_classes=100, **args)
    checked = 0
    for key, weight in engine.module.named_parameters():
        is_head = key.startswith((engine.hints.head[-1], "side_heads"))
        if weight.ndim < 2 or weight.numel() < 2000 or (is_head and kind in ("resnet", "unet3d")):
            continue
        name = key.replace("blocks.1.attn.proj", "blocks.0.attn.proj")
        name = name.replace("blocks.0.fc2", "blocks.1.fc2").replace("0.mlp.down", "1.mlp.down")
        assert weight.std().item() == pytest.approx(expected(name, weight), rel=0.1), key
        assert abs(weight.mean().item()) < 0.1 * weight.std().item(), key
        checked += 1
    assert checked > 3
