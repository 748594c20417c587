import json
from pathlib import Path

import pytest
import torch

from deepseek.cli.main import run
from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine
from deepseek.trainer import evaluate_model


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_DEBUG", raising=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    engine = ModelEngine("resnet", num_layers=8, width=8, channels=1)
    engine.bind(ImageDataset("digits", transform="resize_8", channels=1).spec)
    engine.save("model.bin")
    return engine


def test_a_model_file_is_cut_down(model, capsys):
    assert run(["prune", "model.bin", "small.bin", "--flops", "50%"]) == 0
    shown = capsys.readouterr().out
    assert "channels of" in shown
    assert "batch 32" in shown
    assert ModelEngine.load("small.bin").num_parameters < model.num_parameters


def test_it_is_trained_on_with_the_original_as_a_teacher(model, capsys):
    command = ["prune", "model.bin", "small.bin", "--parameters", "0.6", "--criterion", "taylor",
               "--data", "digits", "--epochs", "1", "--distill", "--json"]  # fmt: skip
    assert run(command) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "epoch" in shown.err
    assert found["after"]["num_parameters"] <= 0.6 * found["before"]["num_parameters"]
    assert found["metrics"]["accuracy"] > 0.1
    assert found["metrics_before"].keys() == found["metrics"].keys()
    assert len(ModelEngine.load("small.bin").changes) == 1


def test_what_is_lost_is_shown(model, capsys):
    assert run(["prune", "model.bin", "small.bin", "--flops", "50%", "--val", "digits"]) == 0
    shown = capsys.readouterr().out
    data = ImageDataset("digits", transform="resize_8", channels=1)
    found = [
        evaluate_model(ModelEngine.load(name), data)["accuracy"]
        for name in ("model.bin", "small.bin")
    ]
    assert f"accuracy  {found[0]:.6g} -> {found[1]:.6g}" in shown


@pytest.mark.parametrize(
    ("target", "message"),
    [("model.bin", "would replace the model"), ("small.pt", "small.pt does not end with .bin")],
)
def test_the_original_and_other_suffixes_are_not_written(model, target, message, capsys):
    content = Path("model.bin").read_bytes()
    assert run(["prune", "model.bin", target, "--flops", "50%"]) == 2
    assert message in capsys.readouterr().err
    assert Path("model.bin").read_bytes() == content


def test_two_zeros_in_four_stay_through_training(model):
    command = ["prune", "model.bin", "sparse.bin", "--pattern", "2:4", "--data", "digits",
               "--epochs", "1"]  # fmt: skip
    assert run(command) == 0
    weight = ModelEngine.load("sparse.bin").module.layer1[0].conv1.weight
    assert ((weight == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing says how much"),
        (("--flops", "half"), "--flops=half is no share"),
        (("--flops", "150%"), "flops=1.5 is not a share"),
        (("--flops", "50%", "--epochs", "2"), "--epochs=2 without data"),
        (("--flops", "50%", "--distill"), "--distill would be ignored"),
        (("--flops", "50%", "--depth"), "there are no data"),
    ],
)
def test_wrong_options_are_refused(model, options, message, capsys):
    assert run(["prune", "model.bin", "small.bin", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_is_found_before_anything_is_computed(model, capsys):
    assert run(["prune", "model.bin", "no/small.bin", "--flops", "50%"]) == 2
    assert "mkdir -p no" in capsys.readouterr().err
