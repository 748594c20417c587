"""`deepseek train` and `evaluate` on cubes of nodules."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepseek.cli.main import run
from deepseek.config import load_config

NODULES = """\
name: nodules
data:
  format: nodules
  train: cubes.npz
  transform: patch_8x8x8+flip
  num_workers: 0
model:
  architecture: center_detector3d
  args: {features: [4, 4], blocks: 1, skipped_levels: 0}
trainer: {epochs: 1, batch_size: 4, loggers: [jsonl]}
"""


@pytest.fixture
def cubes(tmp_path, monkeypatch):
    """Ten cubes of noise with a bright box each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    mask = np.zeros((10, 16, 16, 16), np.uint8)
    mask[:, 6:10, 6:10, 6:10] = 1
    image = (rng.integers(0, 90, mask.shape) + 150 * mask).astype(np.uint8)
    np.savez("cubes.npz", image=image, mask=mask, name=[f"{number}_1" for number in range(10)])
    Path("n.yaml").write_text(NODULES)


def test_nodules_from_a_file_to_their_evaluation(cubes, capsys):
    assert run(["train", "n.yaml"]) == 0
    written = Path("runs/nodules-1/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert 0 <= next(line["val_cpm"] for line in lines if "val_cpm" in line) <= 1
    capsys.readouterr()
    model = "runs/nodules-1/model.bin"
    assert run(["evaluate", model, "--data", "cubes.npz", "--json"]) == 0
    assert "sensitivity_at_1" in json.loads(capsys.readouterr().out)["metrics"]
    np.save("scan.npy", np.full((9, 18, 17), -850, np.int16))
    assert run(["predict", model, "scan.npy", "--min-score", "0", "--json", "--output", "out"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["volumes"]
    assert len(Path("out/findings.csv").read_text().splitlines()) == 1 + len(row["findings"])
    assert run(["predict", model, "scan.npy", "--report", "page.txt"]) == 2
    assert "--report page.txt is no .html file" in capsys.readouterr().err
    assert run(["predict", model, "scan.npy", "--text", "a"]) == 2
    capsys.readouterr()
    assert run(["evaluate", model, "--data", "nowhere", "--samples", "s.csv"]) == 2
    assert "the task of the model is detection" in capsys.readouterr().err


def test_outlines_of_nodules_are_learnt_and_evaluated(cubes, capsys):
    settings = ["data.targets=masks", "model.architecture=unet3d"]
    assert run(["train", "n.yaml", *settings, "model.args={features: [4, 4]}"]) == 0
    capsys.readouterr()
    model = "runs/nodules-1/model.bin"
    assert run(["evaluate", model, "--data", "cubes.npz", "--json"]) == 0
    assert "dice" in json.loads(capsys.readouterr().out)["metrics"]
    assert run(["evaluate", model, "--data", "nowhere", "--samples", "s.csv"]) == 2
    assert "the task of the model is segmentation" in capsys.readouterr().err
    np.save("scan.npy", np.full((9, 18, 17), -850, np.int16))
    assert run(["predict", model, "scan.npy"]) == 0
    assert "nodule" in capsys.readouterr().out
    assert run(["predict", model, "scan.npy", "--min-score", "0.5"]) == 2
    assert "--min-score 0.5 would be ignored" in capsys.readouterr().err


def test_folds_of_cubes_divide_patients_and_the_last_weights_count(cubes, capsys):
    assert run(["train", "n.yaml", "--folds", "3", "--fold", "1"]) == 0
    assert "3 folds of patients; the last weights of each" in capsys.readouterr().out
    written = json.loads(Path("runs/nodules-folds-1/folds.json").read_text())
    assert 0 <= written["metrics"]["1"]["cpm"] <= 1
    assert "NaN" not in Path("runs/nodules-folds-1/folds.json").read_text()
    assert Path("runs/nodules-folds-1/fold_1/model.bin").is_file()
    assert run(["train", "n.yaml", "--folds", "11"]) == 2
    assert "num_folds=11 of 10 patients" in capsys.readouterr().err
    assert run(["train", "n.yaml", "--folds", "3", "--together"]) == 2
    assert "--together would be ignored" in capsys.readouterr().err


def test_nodules_without_validation_cannot_stop_early(cubes, capsys):
    assert run(["train", "n.yaml", "data.fold=null", "trainer.early_stopping=3"]) == 2
    assert "data.fold=null" in capsys.readouterr().err


def test_init_chooses_for_the_cubes_and_the_memory(cubes, capsys):
    assert run(["init", "nodules", "--data", "cubes.npz"]) == 2
    assert (
        "80% of cubes of 16 voxels are less than the smallest patch, 16" in capsys.readouterr().err
    )
    with np.load("cubes.npz") as known:
        wide = {name: np.pad(known[name], ((0, 0), *[(4, 4)] * 3)) for name in ("image", "mask")}
        np.savez("cubes.npz", **wide, name=known["name"])
    assert run(["init", "nodules", "--data", "cubes.npz", "--memory", "4GiB"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("10 cubes of 24 voxels\n")
    assert "2 crops" in shown
    config = load_config("model_config.yaml")
    assert config.data.transform.startswith("patch_16x16x16+flip+")
    assert config.model.args["features"][1] == 2 * config.model.args["features"][0]
    short = ["trainer.time_budget=null", "trainer.epochs=1", "data.crops_per_cube=1"]
    small = ["model.args.features=[4, 4, 4]", "data.num_workers=0"]
    assert run(["train", "model_config.yaml", *short, *small]) == 0
