"""Whole volumes of different sizes, evaluated window by window on two ranks."""

import numpy as np
import pytest
import torch
from tests.distributed.ranks import run_ranks

from deepseek.datasets import VolumeDataset
from deepseek.models import UNet3D
from deepseek.trainer import Trainer


def evaluate(folder, run_dir, parallel=None):
    torch.manual_seed(0)
    data = VolumeDataset(folder, "zscore+patch_4x8x8", cache="off")
    model = UNet3D(channels=1, num_classes=2, features=(4, 8))
    settings = {} if parallel is None else {"parallel": parallel}
    trainer = Trainer(
        model, data, data, batch_size=2, epochs=1, lr=1e-3, run_dir=run_dir, num_workers=0,
        loggers=("jsonl",), precision="fp32", device="cpu", predict_memory=False, **settings,
    )  # fmt: skip
    trainer.fit()
    return trainer.evaluate(), trainer.predict(data)["index"].tolist()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    for number, depth in enumerate((9, 3, 14)):  # three volumes: a rank has none at the end
        voxels = rng.normal(size=(depth, 10, 11 + number)).astype(np.float32)
        np.save(tmp_path / "scans" / "images" / f"{number}.npy", voxels)
        np.save(tmp_path / "scans" / "labels" / f"{number}.npy", (voxels > 0.5).astype(np.uint8))
    return tmp_path / "scans"


@pytest.mark.parametrize("parallel", ["dp2", "fsdp2"])
def test_metrics_are_those_of_one_process(folder, tmp_path, parallel):
    alone, indices = evaluate(folder, tmp_path / "alone")
    assert indices == [0, 1, 2]
    for metrics, found in run_ranks(
        2, evaluate, folder, tmp_path / "run", parallel=parallel, folder=tmp_path / "ranks"
    ):
        assert metrics == pytest.approx(alone, abs=1e-4)
        assert found in ([0, 1, 2], indices)
