"""Overlaps are those of hand-computed cases, and a batch in parts is a batch."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from deepseek.datasets import VolumeDataset
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import ConfigError, DataError
from deepseek.models import ModelEngine, SlidingWindow, UNet3D
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer import SegmentationTask, Trainer
from deepseek.trainer.evaluation_pass import evaluate
from deepseek.trainer.precision import Precision
from deepseek.trainer.task import resolve_task

LABELS = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 0]]])


def logits_of(labels, num_classes=3, scale=30.0):
    return torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1) * scale


def measure(task, logits, labels):
    metrics = task.new_metrics()
    task.update_metrics(metrics, logits, {"targets": labels})
    return {name: mean.compute() for name, mean in metrics.items()}


def test_a_perfect_answer_has_no_loss_and_full_overlap():
    task, logits = SegmentationTask(3), logits_of(LABELS)
    assert task.loss(logits, {"targets": LABELS}).item() == pytest.approx(0, abs=1e-5)
    assert measure(task, logits, LABELS) == pytest.approx(
        {"loss": 0, "accuracy": 1, "dice": 1}, abs=1e-5
    )


def test_dice_is_that_of_a_hand_computed_case():
    found = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [0, 1]]])
    # sample 0: class 1 has 2 * 1 / (1 + 2), class 2 has 2 * 1 / (2 + 1); sample 1: class 1 is
    # predicted and not there, class 2 neither
    got = measure(SegmentationTask(3), logits_of(found), LABELS)
    assert got["dice"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3, abs=1e-4)
    assert got["accuracy"] == 6 / 8


def test_the_loss_of_uniform_logits_is_that_of_the_formula():
    logits = torch.zeros(1, 3, 2, 2)
    # 4 voxels, 1/3 each: class 1 has 2 * 2/3 / (4/3 + 2), class 2 has 2 * 1/3 / (4/3 + 1)
    dice = ((4 / 3) / (10 / 3) + (2 / 3) / (7 / 3)) / 2
    got = SegmentationTask(3).loss(logits, {"targets": LABELS[:1]})
    assert got.item() == pytest.approx(torch.log(torch.tensor(3.0)).item() + 1 - dice, abs=1e-4)


def test_a_batch_in_parts_has_the_loss_of_the_batch():
    torch.manual_seed(0)
    task, logits = SegmentationTask(4), torch.randn(5, 4, 3, 4, 4)
    labels = torch.randint(0, 4, (5, 3, 4, 4))
    whole = task.loss(logits, {"targets": labels})
    parts = sum(
        task.loss(logits[part], {"targets": labels[part]}) for part in (slice(0, 2), slice(2, 5))
    )
    torch.testing.assert_close(whole, parts)
    rows = task.predictions(logits, {"targets": labels})
    torch.testing.assert_close(rows["loss"].sum(), whole)
    assert rows["dice"].shape == (5, 3)


def test_voxels_that_are_not_labelled_change_nothing():
    torch.manual_seed(0)
    task, logits = SegmentationTask(3), torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[:, 2:] = -100
    other = logits.clone()
    other[:, :, 2:] += torch.randn(2, 3, 2, 4)
    assert task.loss(logits, {"targets": labels}) == task.loss(other, {"targets": labels})
    assert measure(task, logits, labels) == measure(task, other, labels)


def test_coarser_outputs_weigh_half_as_much_each():
    task, fine, coarse = SegmentationTask(3), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    labels = torch.randint(0, 3, (2, 2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    both = task.loss((fine, coarse), {"targets": labels})
    parts = [
        task.loss(fine, {"targets": labels}),
        task.loss(coarse, {"targets": labels[:, ::2, ::2]}),
    ]
    torch.testing.assert_close(both, 2 / 3 * parts[0] + 1 / 3 * parts[1])


def test_a_u_net_learns_to_find_bright_voxels(tmp_path):
    torch.manual_seed(0)
    volumes = torch.randn(24, 1, 4, 8, 8)
    data = TensorDataset(volumes, (volumes[:, 0] > 0.5).long())
    model = UNet3D(1, 2, (4, 8, 8), blocks=1, strides=((1, 2, 2), (2, 2, 2)), deep_supervision=True)
    trainer = Trainer(
        model, data, data, task=SegmentationTask(2), batch_size=8, epochs=6, lr=0.02,
        grad_accum_steps=2, run_dir=tmp_path / "run", num_workers=0, loggers=("jsonl",),
        precision="fp32", device="cpu",
    )  # fmt: skip
    records = trainer.fit().records
    assert records[-1]["val_dice"] > 0.8 > records[0]["val_dice"]


def test_it_follows_from_the_data():
    fields = {
        "inputs": FieldSpec((1, 4, 4, 4), "float32"),
        "targets": FieldSpec((4, 4, 4), "int64"),
    }
    spec = DataSpec("segmentation", fields, ("none", "organ"), (2, 2))
    task = resolve_task("auto", spec, 0.1)
    assert isinstance(task, SegmentationTask)
    assert (task.num_classes, task.label_smoothing) == (2, 0.1)


def test_a_single_class_is_refused():
    with pytest.raises(ConfigError, match="num_classes=1 of a segmentation is below 2"):
        SegmentationTask(1)


def test_masks_without_a_class_are_refused_and_a_class_of_none_is_said(tmp_path):
    names = ["background", "cyst", "tumour"]
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    voxels = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    labels = np.zeros((8, 8, 8), np.uint8)

    def make_trainer():
        for number in range(2):
            np.savez(tmp_path / "images" / f"{number}.npz", voxels=voxels)
            np.savez(tmp_path / "labels" / f"{number}.npz", voxels=labels)
        data = VolumeDataset(tmp_path, "patch_8x8x8", class_names=names, cache="off")
        return Trainer(UNet3D(num_classes=3, features=(2, 4)), data, val_data=None)

    said = "hold 1,024 voxels of 'background' and none of cyst, tumour: there is nothing to learn"
    with pytest.raises(DataError, match=said):
        make_trainer()
    labels[2:4] = 1
    with pytest.warns(UserWarning, match=re.escape("no voxel of the training data is of tumour:")):
        make_trainer()


def test_whole_volumes_are_evaluated_window_by_window(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number, shape in enumerate([(9, 10, 11), (5, 17, 8), (3, 4, 5)]):
        voxels = np.random.default_rng(number).normal(size=shape)
        np.save(tmp_path / "images" / f"{number}.npy", voxels)
        np.save(tmp_path / "labels" / f"{number}.npy", (voxels > 0.3).astype(np.uint8))
    data = VolumeDataset(tmp_path, "patch_4x8x8", cache="off")
    torch.manual_seed(0)
    engine = ModelEngine.wrap(UNet3D(1, 2, (4, 8)), data.spec)
    task, engine = SegmentationTask(2), engine.eval()
    parallel = ParallelModel(engine, World.alone(torch.device("cpu")))
    view, exact = data.evaluation_view(), Precision("fp32", "cpu", "to compare")
    together, _ = view.get_batch(range(3), 0)
    apart = [view.get_batch([index], 0)[0] for index in range(3)]
    found = evaluate(parallel, [together], task, exact, False, True)
    assert found.metrics == evaluate(parallel, apart, task, exact, False).metrics
    assert found.samples["index"].tolist() == [0, 1, 2]
    sliding, metrics = SlidingWindow(engine, (4, 8, 8)), task.new_metrics()
    for number in range(3):
        volume, labels = data.volume(number)
        known = {"targets": torch.from_numpy(labels.astype(np.int64))[None]}
        task.update_metrics(metrics, sliding(torch.from_numpy(volume.voxels)[None]), known)
    assert found.metrics == {name: metric.compute() for name, metric in metrics.items()}
