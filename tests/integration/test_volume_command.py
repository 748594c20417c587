"""`deepseek train` and `evaluate` on volumes, and the examples."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from deepseek.cli.main import run
from deepseek.config import load_config
from deepseek.datasets import read_volume
from deepseek.trainer.cross_validation import figures_of, table_of

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "medical").glob("*.yaml"))
SCANS = """\
name: scans
data:
  format: volume
  train: scans
  val: 0.25
  class_names: [background, bright, brighter]
  transform: zscore+patch_8x12x12+flip
  patches_per_volume: 8
  num_workers: 0
  foreground_share: 0.7
model:
  architecture: unet3d
  args: {features: [8, 16], blocks: 1}
trainer: {epochs: 8, batch_size: 8, lr: 1e-2, loggers: [jsonl]}
"""


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scans(tmp_path):
    """Volumes of noise with boxes of two brightnesses."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    for number in range(8):
        labels = np.zeros((10, 11, 12), np.uint8)
        labels[2:6, 2:6, 1:6], labels[5:9, 5:10, 7:11] = 1, 2
        labels = np.roll(labels, rng.integers(0, 3, 3), (0, 1, 2))
        voxels = (rng.normal(0, 10, labels.shape) + 60.0 * labels).astype(np.int16)
        np.save(tmp_path / "scans" / "images" / f"{number}.npy", voxels)
        np.save(tmp_path / "scans" / "labels" / f"{number}.npy", labels)
    Path("a.yaml").write_text(SCANS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_configurations(path):
    assert load_config(path).data.format in ("volume", "nodules")


def test_a_segmentation_from_a_file_to_its_evaluation(scans, capsys):
    assert run(["train", "a.yaml"]) == 0
    written = Path("runs/scans-1/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    dice = [line["val_dice"] for line in lines if "val_dice" in line]
    assert dice[-1] > max(0.5, dice[0])
    capsys.readouterr()
    evaluate = ["evaluate", "runs/scans-1/model.bin", "--data", "scans", "--metrics"]
    assert run([*evaluate, "hd95", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["dice"] > 0.5
    assert 0 <= metrics["hd95"] < 20
    assert run([*evaluate, "calibration", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert 0 < metrics["ece"] <= metrics["mce"] < 1
    assert run([*evaluate, "hd59"]) == 2
    assert 'did you mean "hd95"?' in capsys.readouterr().err
    predict = ["predict", "runs/scans-1/model.bin"]
    assert run([*predict, "scans", "--output", "masks", "--flips", "hw", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dice"] > 0.5
    assert 0 <= found["hausdorff95_mm"] < 20
    assert [row["mask"] for row in found["volumes"]] == [f"masks/{n}.nii.gz" for n in range(8)]
    assert read_volume("masks/3.nii.gz").voxels.shape == (1, 10, 11, 12)
    assert run([*predict, "scans/images/0.npy", "--overlap", "0.5"]) == 0
    assert re.match(r"scans/images/0.npy  bright .* ml, brighter .* ml$", capsys.readouterr().out)
    Path("broken.nii.gz").write_bytes(b"not a scan")
    assert run([*predict, "broken.nii.gz"]) == 3
    assert "is no NIfTI file" in capsys.readouterr().out
    assert run([*predict, "scans/images/0.npy", "--max-voxels", "1000"]) == 3
    assert "10 x 11 x 12 voxels, more than max_voxels=1,000" in capsys.readouterr().out
    assert run([*predict, "scans/images/0.npy", "--abnormal", "brigt"]) == 2
    assert "abnormal='brigt' is none of the classes" in capsys.readouterr().err
    assert run([*predict, "scans/images/0.npy", "--text", "a"]) == 2
    assert run([*predict, "scans/images/0.npy", "--flips", "x"]) == 2
    assert "--flips dhw" in capsys.readouterr().err
    assert run([*predict, "scans/images/0.npy", "--region", "liver"]) == 2
    assert "region='liver'" in capsys.readouterr().err


def test_folds_of_patients_with_a_share_that_chooses_the_model(scans, capsys):
    short = ["trainer.epochs=1", "data.patches_per_volume=1"]
    assert run(["train", "a.yaml", *short, "--folds", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 folds of patients; 25% of the rest held back to choose the model" in out
    written = json.loads(Path("runs/scans-folds-1/folds.json").read_text())
    assert written["run"] == [0, 1, 2, 3]
    dice = [own["dice"] for own in written["metrics"].values()]
    assert written["mean"]["dice"] == pytest.approx(np.mean(dice))
    assert written["std"]["dice"] == pytest.approx(np.std(dice, ddof=1))
    again = ["train", "a.yaml", *short, "--folds", "4", "--run-dir", "runs/scans-folds-1"]
    assert run([*again, "--fold", "2"]) == 0  # is finished, and not run again
    assert json.loads(Path("runs/scans-folds-1/folds.json").read_text())["run"] == [2]
    assert run([*again, "--fold", "4"]) == 2
    assert "fold 4 of 4" in capsys.readouterr().err
    assert run([*again[:-3], "3", *again[-2:]]) == 2
    assert "holds results with folds=4, not 3" in capsys.readouterr().err


def test_an_interrupted_fold_is_gone_on_with(scans, capsys):
    settings = ["data.patches_per_volume=1", "data.val=null", "trainer.checkpoint_every=epoch"]
    command = ["train", "a.yaml", *settings, "--folds", "4", "--fold", "1", "--run-dir", "cv"]
    assert run([*command, "trainer.epochs=1"]) == 0
    Path("cv/fold_1/fold.json").unlink()  # as it is before the last of it
    capsys.readouterr()
    assert run([*command, "trainer.epochs=2"]) == 0
    lines = [json.loads(line) for line in Path("cv/fold_1/metrics.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in lines if each["kind"] == "epoch"] == [1, 2]
    Path("cv/fold_1/fold.json").unlink()
    assert run([*command, "trainer.epochs=2"]) == 0  # nothing is left but the test
    shutil.rmtree("cv/fold_1/checkpoints")
    Path("cv/fold_1/fold.json").unlink()
    assert run([*command, "trainer.epochs=1"]) == 0  # nothing to go on with


def test_a_figure_that_a_fold_lacks_is_none_over_all():
    found = figures_of({0: {"auc": math.nan, "loss": 1.0}, 1: {"auc": 0.5, "loss": 2.0}})
    assert found["mean"] == {"auc": None, "loss": 1.5}
    assert found["metrics"]["0"]["auc"] is None
    assert "nan" in table_of({0: {"auc": math.nan}, 1: {"auc": 0.5}})[1]


def test_folds_refuse_validation_data_of_their_own(scans, capsys):
    assert run(["train", "a.yaml", "--folds", "2", "data.val=others"]) == 2
    assert "set data.val to a share" in capsys.readouterr().err


def test_validation_on_the_training_data_is_refused(scans, capsys):
    assert run(["train", "a.yaml", "data.val=scans"]) == 2
    assert "data.val=scans is data.train" in capsys.readouterr().err


def test_the_patch_must_suit_the_model(scans, capsys):
    assert run(["train", "a.yaml", "data.transform=patch_7x12x12", "trainer.epochs=1"]) == 2
    assert "D=7 voxels are no multiple of 2" in capsys.readouterr().err


def test_a_killed_run_on_volumes_is_resumed_to_the_bit_without_its_clock(scans, capsys):
    budget = ["trainer.epochs=null", "trainer.time_budget=1m", "data.patches_per_volume=2"]
    code = run(["verify-resume", "a.yaml", *budget, "--steps", "2", "--kills", "1"])
    shown = capsys.readouterr()
    assert code == 0, shown.out
    assert "exact: weights, optimizer" in shown.out
    assert "time_budget=1m is left out here" in shown.err


def test_init_chooses_for_the_volumes_and_the_memory(scans, capsys):
    assert run(["init", "volumes", "--data", "scans", "--memory", "4GiB"]) == 0
    assert "the median volume" in capsys.readouterr().out
    config = load_config("model_config.yaml")
    assert config.data.format == "volume"
    assert config.data.transform.startswith("spacing_1x1x1+zscore+patch_10x12x12+flip_dhw")
    assert config.trainer.time_budget == "1h"
    assert run(["init", "digits", "--memory", "4GiB", "--force"]) == 2
    assert "would be ignored" in capsys.readouterr().err
