"""`deepseek train` and `evaluate` on volumes, and the examples."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepseek.cli.main import run
from deepseek.config import load_config

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
    assert run(["evaluate", "runs/scans-1/model.bin", "--data", "scans", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["dice"] > 0.5
    assert run(["predict", "runs/scans-1/model.bin", "scans/images/0.npy"]) == 2
    assert "files of volumes are not predicted yet" in capsys.readouterr().err


def test_validation_on_the_training_data_is_refused(scans, capsys):
    assert run(["train", "a.yaml", "data.val=scans"]) == 2
    assert "data.val=scans is data.train" in capsys.readouterr().err


def test_the_patch_must_suit_the_model(scans, capsys):
    assert run(["train", "a.yaml", "data.transform=patch_7x12x12", "trainer.epochs=1"]) == 2
    assert "D=7 voxels are no multiple of 2" in capsys.readouterr().err
