import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from deepseek.convert import convert
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ModelEngine, list_models
from deepseek.models.weights import read_weights
from deepseek.models.zoo import check_model_args

TINY = "test_resnet"  # timm's own for tests: 0.5 M parameters


def make_spec(num_classes, size=32, channels=3):
    names = tuple(map(str, range(num_classes)))
    fields = {"inputs": FieldSpec((channels, size, size), "uint8")}
    return DataSpec("classification", fields, names, (1,) * num_classes)


def test_own_names_come_first_and_timm_is_not_needed_for_them():
    names = list_models()
    assert names[: len(list_models(own_only=True))] == list_models(own_only=True)
    assert {"resnet20", "vit_base_patch16_224", "resnet50", TINY} <= set(names)
    code = (
        "import sys; from deepseek.models import ModelEngine; ModelEngine('resnet20');"
        " sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("resnet5O", "resnet50"), ("resnet21", "resnet20"), ("vit_base_16_224", "vit_base_patch16")],
)
def test_wrong_name_gets_the_nearest_of_ours_and_timms(wrong, meant):
    with pytest.raises(ConfigError, match=rf"unknown architecture '{wrong}'(.|\n)*{meant}"):
        ModelEngine(wrong)


def test_every_unknown_argument_gets_the_nearest():
    with pytest.raises(ConfigError) as caught:
        ModelEngine("vit_tiny_patch16_224", patchsize=8, head=3)
    assert "patchsize=8" in str(caught.value)
    assert '"patch_size"' in str(caught.value)
    assert '"heads"' in str(caught.value)
    problems = check_model_args("vit", {"dimm": 3})
    assert problems[0].key == "dimm"
    assert '"dim"' in problems[0].suggestion
    assert {problem.key for problem in problems[1:]} >= {"image_size", "dim", "heads"}
    assert check_model_args("resnet20", {"width": 8}) == []
    assert [p.key for p in check_model_args("resnet50", {"pretrained_cfg": {}})] == [
        "pretrained_cfg"
    ]


def test_presets_can_be_changed():
    engine = ModelEngine("vit_tiny_patch16_224", image_size=32, num_layers=1)
    assert engine.config["image_size"] == 32
    assert engine.config["dim"] == 192


def test_timm_model_learns_its_classes_and_survives_a_file(tmp_path):
    engine = ModelEngine(TINY)
    assert engine.hints.prefers_channels_last
    with pytest.raises(ConfigError, match="num_classes=None"):
        engine(torch.zeros(1, 3, 32, 32))
    engine.bind(make_spec(4))
    engine.eval()
    x = torch.randn(2, 3, 32, 32)
    assert engine(x).shape == (2, 4)
    engine.save(tmp_path / "m.bin")
    loaded = ModelEngine.load(tmp_path / "m.bin").eval()
    assert torch.equal(loaded(x), engine(x))
    assert loaded.architecture == TINY
    with pytest.raises(ConfigError, match="num_classes=4, the data 5"):
        engine.bind(make_spec(5))


def test_timm_takes_our_vocabulary_and_says_what_it_does_not_take():
    engine = ModelEngine(TINY, channels=1, num_classes=2)
    assert engine(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
    with pytest.raises(ConfigError, match=r"images 3x32x32 .*takes 1xanyxany"):
        engine.bind(make_spec(2))
    with pytest.raises(ConfigError, match=r"timm cannot build.*no_such"):
        ModelEngine(TINY, no_such=3)
    with pytest.raises(ConfigError, match=r"images 3x32x32 .*takes 3x160x160"):
        ModelEngine("test_vit", num_classes=2).bind(make_spec(2))


def weights_of(name, tmp_path, num_classes=10, **args):
    engine = ModelEngine(name, num_classes=num_classes, **args)
    path = tmp_path / f"{name}.safetensors"
    save_file(engine.module.state_dict(), path)
    return engine, path


def test_pretrained_works_offline_from_a_folder_of_weights(tmp_path, monkeypatch):
    source, _ = weights_of("resnet50", tmp_path, num_classes=7)
    monkeypatch.setenv("DEEPSEEK_WEIGHTS", str(tmp_path))
    model = ModelEngine(architecture="resnet50", pretrained=True)
    assert model.num_classes == 7
    assert torch.equal(model.module.conv1.weight, source.module.conv1.weight)
    model.bind(make_spec(3, size=64))  # nobody asked for 7: the data's 3 win
    assert model.num_classes == 3


def test_pretrained_with_a_file_reads_the_file(tmp_path):
    source, path = weights_of(TINY, tmp_path)
    for engine in (
        ModelEngine(TINY, pretrained=True, weights=path),
        ModelEngine(f"timm/{TINY}", weights=str(path)),
    ):
        for name, tensor in source.module.state_dict().items():
            assert torch.equal(engine.module.state_dict()[name], tensor)


def test_head_of_another_size_is_new_with_a_warning_that_names_it(tmp_path):
    source, path = weights_of("resnet20", tmp_path)
    with pytest.warns(UserWarning, match=r"the head \(linear.weight, linear.bias\) is new"):
        engine = ModelEngine("resnet20", weights=path, num_classes=3)
    assert engine.module.linear.out_features == 3
    assert torch.equal(engine.module.conv1.weight, source.module.conv1.weight)


def test_weights_of_another_model_are_refused_with_lists(tmp_path):
    _, path = weights_of("resnet32", tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected: layer1.3.* and \d+ more"):
        ModelEngine("resnet20", weights=path)
    with pytest.raises(CheckpointError, match=r"of another shape: conv1.weight \(16, 3, 3, 3\)"):
        ModelEngine("resnet32", weights=path, width=8)


def test_weights_from_a_model_file(tmp_path):
    source = ModelEngine("resnet20", num_classes=4)
    source.save(tmp_path / "m.bin")
    engine = ModelEngine("resnet20", weights=tmp_path / "m.bin")
    assert engine.num_classes == 4
    assert torch.equal(engine.module.conv1.weight, source.module.conv1.weight)


def test_pickled_weights_need_an_explicit_word(tmp_path):
    source = ModelEngine("resnet20", num_classes=4)
    wrapped = {f"module.{name}": tensor for name, tensor in source.module.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(ConfigError, match=r"pickled file(.|\n)*allow_pickle=True"):
        ModelEngine("resnet20", weights=tmp_path / "m.pth")
    engine = ModelEngine("resnet20", weights=tmp_path / "m.pth", allow_pickle=True)
    assert torch.equal(engine.module.conv1.weight, source.module.conv1.weight)


def test_a_checkpoint_of_the_tutorial_is_read_from_a_file(tmp_path):
    source = ModelEngine("resnet20", num_classes=4)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
    content = {
        "epoch": 5, "model_state_dict": source.module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(), "loss": 0.4,
    }  # fmt: skip
    torch.save(content, tmp_path / "m.pt")
    state = read_weights(tmp_path / "m.pt", allow_pickle=True)
    assert torch.equal(state["conv1.weight"], source.module.conv1.weight)
    assert convert(tmp_path / "m.pt", allow_pickle=True).engine.num_classes == 4


def test_without_network_pretrained_fails_fast_and_says_what_to_do(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("DEEPSEEK_WEIGHTS", raising=False)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot be fetched(.|\n)*DEEPSEEK_WEIGHTS"):
        ModelEngine(TINY, pretrained=True)
    assert time.monotonic() - began < 5
    with pytest.raises(ConfigError, match="no published weights are known"):
        ModelEngine("resnet20", pretrained=True)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(ConfigError, match=r"weights='absent.safetensors' is not a file"):
        ModelEngine("resnet20", weights="absent.safetensors")
    assert os.environ.get("DEEPSEEK_WEIGHTS") is None
