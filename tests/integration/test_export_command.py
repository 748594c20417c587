"""`deepseek export`: a file of another runtime, what is printed, and what is refused."""

import json

import pytest
import torch

from deepseek.cli.main import run
from deepseek.datasets import ImageDataset
from deepseek.deploy import load_engine
from deepseek.models import ModelEngine


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_DEBUG", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data_home"))
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, width=4)
    engine.bind(ImageDataset("digits", transform="resize_16", channels=3).spec)
    engine.save("model.bin")


def test_a_file_is_written_compared_and_described(capsys):
    assert run(["export", "model.bin", "m.pt2", "--data", "digits", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "resnet as pt2, fp32:" in printed
    assert "(m.pt2, m.pt2.json)" in printed
    assert "takes any batch; on samples of the data outputs differ by" in printed
    digits = ImageDataset("digits", channels=3)
    found = load_engine("m.pt2").predict(digits.image(0))
    assert found.label == ModelEngine.load("model.bin").predict(digits.image(0)).label


def test_onnx_in_json(capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert run(["export", "model.bin", "m.onnx", "--opset", "18", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == ["m.onnx"]
    assert not found["real_samples"]
    assert found["difference"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.h5"], "m.h5 does not say which format it is to be"),
        (["m.onnx", "--precision", "int8"], "calibrated on real samples"),
        (["model.xml"], "model.xml would come with model.bin"),
        (["m.pt2", "label_column=x"], "label_column=x would be ignored: there are no --data"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, capsys):
    if "model.xml" in arguments:
        pytest.importorskip("openvino")
    assert run(["export", "model.bin", *arguments]) == 2
    assert message in capsys.readouterr().err
