"""`deepseek quantize`, on the digits."""

import json
from pathlib import Path

import pytest
import torch

from deepseek.cli.main import run
from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, width=4, channels=1, num_classes=10)
    data = ImageDataset("digits", transform="resize_8", channels=1)
    engine.bind(data.spec)
    for index in range(100):
        picture = folder / "pictures" / data.class_names[data.targets[index]] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        data.image(index).save(picture)
    engine.save(folder / "digits.bin")
    return str(folder / "digits.bin"), str(folder / "pictures")


def test_a_model_is_quantised_within_a_tolerance_and_evaluated(digits, capsys):
    model, pictures = digits
    command = ["quantize", model, "small.bin", "--data", pictures, "--tolerance", "5%"]
    assert run([*command, "--samples", "64", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "measuring accuracy" in told.err
    assert found["before"] - found["after"] <= 0.05
    assert found["bytes_after"] < 0.35 * found["bytes_before"]
    assert {layer["scheme"] for layer in found["layers"]} == {"int8_static", None}
    assert run(["evaluate", "small.bin", "--data", pictures, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] == pytest.approx(found["after"], abs=0.1)  # of other pictures
    assert run(["quantize", "small.bin", "smaller.bin", "--data", pictures]) == 2
    assert "quantised already" in capsys.readouterr().err
    assert not Path("smaller.bin").exists()


def test_a_layer_is_kept_and_a_table_printed(digits, capsys):
    command = ["quantize", digits[0], "half.bin", "--scheme", "bf16", "--keep", "conv1"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "bf16: 6 of 8 layers" in out
    assert "conv1           in float: asked for" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.bin", "--scheme", "int9"], "scheme='int9' is not known"),
        (["out.bin"], "int8_static needs samples"),
        (["out.bin", "--tolerance", "much"], "tolerance='much' is not a share"),
        (["out.txt"], "does not end with .bin"),
        (["no/out.bin"], "mkdir -p no"),
        (["out.bin", "--scheme", "bf16", "--keep", "conv9"], 'did you mean "conv1"'),
    ],
)
def test_wrong_arguments_are_said_before_the_work(digits, arguments, message, capsys):
    assert run(["quantize", digits[0], *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_is_not_replaced_by_itself(digits, capsys):
    assert run(["quantize", digits[0], digits[0], "--scheme", "bf16"]) == 2
    assert "would replace the model" in capsys.readouterr().err
