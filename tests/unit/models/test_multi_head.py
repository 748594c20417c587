"""A trunk and a head for each task."""

import copy

import pytest
import torch
from torch import nn

from deepseek.datasets import DataSpec, FieldSpec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import GPT, Encoder, ModelEngine, MultiHead, ResNet, UNet3D, VisionTransformer
from deepseek.models.depth import distances
from deepseek.models.lora import add_lora, merge_lora

HEADS = {"kind": {"outputs": 3}, "size": {"outputs": 1}}
TRUNKS = {
    "resnet": ({"num_layers": 8}, (3, 16, 16)),
    "resnet18": ({}, (3, 32, 32)),
    "vit": (
        {"image_size": 16, "patch_size": 8, "num_layers": 1, "dim": 16, "heads": 2, "channels": 3},
        (3, 16, 16),
    ),
    "timm/mobilenetv3_small_050": ({}, (3, 32, 32)),
}
SIZES = {"vocab_size": 30, "context_length": 12, "num_layers": 1, "dim": 16, "heads": 2}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_model_of_pictures_can_be_a_trunk(trunk, tmp_path):
    args, shape = TRUNKS[trunk]
    model = MultiHead(trunk, args, HEADS).eval()
    x = torch.randn(2, *shape)
    outputs = model(x)
    assert {name: tuple(y.shape) for name, y in outputs.items()} == {"kind": (2, 3), "size": (2, 1)}
    ModelEngine.wrap(model).save(tmp_path / "m.bin")
    again = ModelEngine.load(tmp_path / "m.bin").eval()
    for name, y in again(x).items():
        torch.testing.assert_close(y, outputs[name])
    assert "heads kind, size" in again.describe() or not again.is_foreign


def test_an_encoder_gives_features_of_tokens_or_of_texts():
    tokens = torch.randint(1, 30, (2, 8))
    heads = {"kind": {"outputs": 3}, "names": {"outputs": 5, "per": "token"}}
    hidden = MultiHead("encoder", SIZES, heads)
    found = {name: tuple(y.shape) for name, y in hidden(tokens).items()}
    assert found == {"kind": (2, 3), "names": (2, 8, 5)}
    pooled = MultiHead.around(Encoder(**SIZES))
    pooled.build_heads(HEADS)
    assert pooled(tokens)["kind"].shape == (2, 3)
    with pytest.raises(ConfigError, match="'names' needs a vector for each token"):
        pooled.build_heads(heads)


def test_a_head_is_the_encoders_own():
    torch.manual_seed(0)
    encoder = Encoder(**SIZES, num_classes=3, dropout=0.0)
    model = MultiHead("encoder", {**SIZES, "dropout": 0.0}, {"kind": {"outputs": 3}})
    model.trunk.load_state_dict(encoder.state_dict(), strict=False)
    model.heads["kind"].pooler.load_state_dict(encoder.pooler.state_dict())
    model.heads["kind"].linear.load_state_dict(encoder.head.state_dict())
    tokens = torch.randint(0, 30, (3, 9))
    torch.testing.assert_close(model(tokens)["kind"], encoder(tokens))


def test_a_trunk_keeps_its_weights_and_loses_its_head():
    torch.manual_seed(0)
    resnet = ResNet(8, num_classes=4)
    weights = copy.deepcopy(resnet.conv1.weight)
    model = MultiHead.around(ModelEngine.wrap(resnet))
    assert torch.equal(model.trunk.conv1.weight, weights)
    assert isinstance(model.trunk.linear, nn.Identity)
    assert model.dim == 64
    assert model.config["trunk"] == "resnet"


def test_a_module_of_the_users_says_how_wide_it_is(tmp_path):
    model = MultiHead.around(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), dim=8)
    model.build_heads(HEADS)
    ModelEngine.wrap(model).save(tmp_path / "m.bin")
    empty = MultiHead.around(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), dim=8)
    again = ModelEngine.load(tmp_path / "m.bin", module=empty)
    x = torch.randn(3, 4)
    torch.testing.assert_close(again(x)["kind"], model(x)["kind"])
    with pytest.raises(ConfigError, match="dim=None for a trunk that is not ours"):
        MultiHead.around(nn.Linear(4, 8))
    with pytest.raises(ConfigError, match="dim=3 for a trunk that is ours"):
        MultiHead.around(ResNet(8), dim=3)


def test_a_trunk_of_ones_own_is_asked_for_by_name(tmp_path):
    model = MultiHead.around(nn.Linear(4, 8), dim=8)
    model.build_heads(HEADS)
    ModelEngine.wrap(model).save(tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"whose trunk is no architecture") as caught:
        ModelEngine.load(tmp_path / "m.bin")
    assert "module=MultiHead.around(MODULE, dim=...)" in str(caught.value)


def test_a_trunk_that_was_cut_or_adapted_is_refused():
    encoder = ModelEngine("encoder", **SIZES, num_classes=2)
    add_lora(encoder, rank=2)
    with pytest.raises(ConfigError, match=r"changed since it was built \(lora\)") as caught:
        MultiHead.around(encoder)
    assert "merge_lora(engine)" in str(caught.value)
    assert MultiHead.around(merge_lora(encoder)).dim == 16


def spec(**tasks):
    fields = {"inputs": FieldSpec((3, 16, 16), "float32"), "targets": FieldSpec((2,), "bool")}
    return DataSpec("multi", fields, tasks=tasks)


def test_heads_are_those_of_the_data():
    kind = DataSpec("classification", {"targets": FieldSpec((), "int64")}, ("a", "b"), (1, 1))
    size = DataSpec("regression", {"targets": FieldSpec((2,), "float32")})
    engine = ModelEngine.wrap(MultiHead("resnet", {"num_layers": 8}))
    with pytest.raises(ConfigError, match="has no heads"):
        engine(torch.zeros(1, 3, 16, 16))
    engine.bind(spec(kind=kind, size=size))
    assert engine.config["heads"] == {
        "kind": {"outputs": 2, "per": "sample"}, "size": {"outputs": 2, "per": "sample"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="the data ask for"):
        engine.bind(spec(kind=kind, other=size))
    with pytest.raises(ConfigError, match="has one head"):
        ModelEngine("resnet", num_layers=8).bind(spec(kind=kind, size=size))
    said = engine.predict(torch.rand(3, 16, 16))
    assert said["kind"].label in ("a", "b")
    assert len(said["size"]) == 2
    with pytest.raises(ConfigError, match="one set of classes was asked"):
        engine.probs_of(torch.rand(1, 3, 16, 16))


def test_positions_of_a_trunk_are_as_far_from_the_heads_as_its_embeddings():
    args = {**TRUNKS["vit"][0], "num_layers": 2, "pool": "cls"}
    engine = ModelEngine.wrap(MultiHead("vit", args, HEADS))
    names = dict(engine.module.named_parameters())
    found = distances(engine.module, engine.hints, names)
    first = {"trunk.pos_embed", "trunk.cls_token", "trunk.patch_embed.proj.weight"}
    assert {found[name] for name in first} == {3}
    assert found["trunk.blocks.1.mlp.fc1.weight"] == 1
    assert found["trunk.norm.weight"] == found["heads.kind.linear.weight"] == 0
    add_lora(engine, rank=2)
    learns = {name for name, weight in engine.module.named_parameters() if weight.requires_grad}
    assert not learns & first
    assert "heads.kind.linear.weight" in learns


def test_what_cannot_be_a_trunk_or_a_head_is_refused():
    for trunk in (GPT(8, 1, 16, heads=2), UNet3D()):
        with pytest.raises(ConfigError, match="gives no vector"):
            MultiHead.around(trunk)
    for heads in ({"a": {"outputs": 2, "per": "word"}}, {"a.b": {"outputs": 2}}, {"a": {"k": 2}}):
        with pytest.raises(ConfigError, match="is no head"):
            MultiHead("resnet", {"num_layers": 8}, heads)
    with pytest.raises(ConfigError, match="outputs=0"):
        MultiHead("resnet", {"num_layers": 8}, {"a": {"outputs": 0}})
    with pytest.raises(ConfigError, match="num_classes=3"):
        MultiHead("resnet", {"num_layers": 8}, num_classes=3)
    with pytest.raises(ConfigError, match="num_classes=2"):
        MultiHead("resnet", {"num_layers": 8}).bind_classes(2)
    assert VisionTransformer.__doc__


def test_tokens_behind_the_separator_are_of_type_1():
    torch.manual_seed(0)
    plain = Encoder(**SIZES, num_classes=2, dropout=0.0)
    pairs = Encoder(**SIZES, num_classes=2, dropout=0.0, type_separator=3)
    pairs.load_state_dict(plain.state_dict())
    tokens = torch.tensor([[2, 7, 3, 9, 9, 3, 0, 0], [2, 7, 8, 9, 3, 0, 0, 0]])
    x, y = plain.embedding(tokens), pairs.embedding(tokens)
    changed = (x != y).any(-1)
    assert changed.tolist()[0] == [False] * 3 + [True] * 5
    torch.testing.assert_close(pairs(tokens)[1], plain(tokens)[1])  # padding is not seen
    assert not torch.allclose(pairs(tokens)[0], plain(tokens)[0])
    assert pairs.config["type_separator"] == 3
    with pytest.raises(ConfigError, match="type_separator=30 is not of the vocabulary"):
        Encoder(**SIZES, type_separator=30)
    assert Encoder(**SIZES, num_types=1, type_separator=3).config["type_separator"] is None
