"""Losses are their formulas, are MONAI's, and count neither voxels without a label nor batches."""

import pytest
import torch
from torch.utils.data import TensorDataset

from deepseek.errors import ConfigError
from deepseek.models import UNet3D
from deepseek.trainer import ClassificationTask, SegmentationTask, Trainer
from deepseek.trainer.segmentation_losses import SEGMENTATION_LOSSES, make_segmentation_loss

SETTINGS = [*SEGMENTATION_LOSSES.names(), {"name": "tversky", "alpha": 0.1, "beta": 2.0},
            {"name": "focal", "gamma": 0.5}, {"name": "dice_focal", "gamma": 1.0}]  # fmt: skip


def some_answers(seed=0, shape=(3, 4, 5)):
    torch.manual_seed(seed)
    return 2 * torch.randn(4, 3, *shape), torch.randint(0, 3, (4, *shape))


def by_formula(given, logits, labels):
    """The losses of each sample, voxel by voxel."""
    settings = {"name": given} if isinstance(given, str) else given
    kind, gamma = settings["name"], settings.get("gamma", 2.0)
    alpha, beta = (settings.get("alpha", 0.3), settings.get("beta", 0.7))
    if kind != "tversky":
        alpha = beta = 0.5
    found = []
    for sample, known in zip(logits, labels, strict=True):
        probs = sample.softmax(0).flatten(1)
        there = torch.stack([(known == k).flatten().float() for k in range(3)])
        true = (probs * there).sum(0)
        voxels = -true.log() * (1 - true) ** (0.0 if kind == "dice_ce" else gamma)
        hit, extra, missed = (
            (a * b).sum(1) for a, b in ((probs, there), (probs, 1 - there), (1 - probs, there))
        )
        overlap = (hit / (hit + alpha * extra + beta * missed))[1:].mean()
        has = {"dice_ce": (1, 1), "dice_focal": (1, 1), "focal": (0, 1), "tversky": (1, 0)}[kind]
        found.append(has[0] * (1 - overlap) + has[1] * voxels.mean())
    return torch.stack(found)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_a_loss_is_its_formula(given, shape):
    logits, labels = some_answers(shape=shape)
    losses = make_segmentation_loss(given)(logits, labels, 1)
    torch.testing.assert_close(losses, by_formula(given, logits, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_voxels_without_a_label_count_in_no_loss(given):
    logits, labels = some_answers()
    labels[:, 2:] = -100
    task, other = SegmentationTask(3, loss=given), logits.clone()
    other[:, :, 2:] += torch.randn(4, 3, 1, 4, 5)
    assert task.loss(logits, {"targets": labels}) == task.loss(other, {"targets": labels})
    nothing = torch.full_like(labels, -100)
    logits.requires_grad_()
    task.loss(logits, {"targets": nothing}).backward()
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_sure_answers_have_finite_slopes(given):
    labels = torch.randint(0, 3, (2, 3, 4))
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 200.0
    for logits in (right, -right, torch.zeros_like(right)):
        logits = logits.clone().requires_grad_()
        SegmentationTask(3, loss=given).loss(logits, {"targets": labels}).backward()
        assert logits.grad.isfinite().all()


def test_the_loss_of_deep_supervision_is_the_chosen_one_at_each_resolution():
    task, (fine, labels) = SegmentationTask(3, loss="tversky"), some_answers(shape=(4, 4))
    labels = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    coarse = torch.randn(4, 3, 2, 2)
    loss = make_segmentation_loss("tversky")
    expected = (
        2 / 3 * loss(fine, labels, 1).sum() + 1 / 3 * loss(coarse, labels[:, ::2, ::2], 1).sum()
    )
    torch.testing.assert_close(task.loss((fine, coarse), {"targets": labels}), expected)


def test_the_validation_loss_is_the_chosen_one_without_smoothing():
    logits, labels = some_answers()
    batch = {"targets": labels}
    for task in (SegmentationTask(3, loss="focal"), SegmentationTask(3, 0.2)):
        metrics = task.new_metrics()
        task.update_metrics(metrics, logits, batch)
        rows = task.predictions(logits, batch)["loss"]
        assert metrics["loss"].compute() == pytest.approx(rows.mean().item())
    assert task.loss(logits, batch) != rows.sum()


def test_a_run_takes_its_loss_from_the_settings(tmp_path):
    torch.manual_seed(0)
    volumes = torch.randn(8, 1, 4, 4, 4)
    data = TensorDataset(volumes, (volumes[:, 0] > 0.5).long())
    trainer = Trainer(
        UNet3D(1, 2, (4, 8), blocks=1), data, data, task=SegmentationTask(2), batch_size=4,
        epochs=2, lr=0.02, loss={"name": "tversky", "alpha": 0.3, "beta": 0.7}, num_workers=0,
        loggers=("jsonl",), precision="fp32", device="cpu", run_dir=tmp_path / "run",
    )  # fmt: skip
    assert all(0 < record["val_loss"] < 1 for record in trainer.fit().records)


def test_another_task_has_no_such_loss(tmp_path):
    data = TensorDataset(torch.randn(8, 4), torch.zeros(8).long())
    with pytest.raises(ConfigError, match="loss=focal would be ignored: ClassificationTask"):
        Trainer(
            torch.nn.Linear(4, 2), data, task=ClassificationTask(2), loss="focal",
            run_dir=tmp_path / "run",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dice", "did you mean|dice_ce"),
        ({"alpha": 1.0}, "has no name"),
        ({"name": "focal", "alpha": 1.0}, "'focal' does not take .*alpha"),
        ({"name": "focal", "gamma": -1}, "gamma=-1 of a loss is not 0 or more"),
        ({"name": "focal", "gamma": "2"}, "gamma='2' of a loss is not 0 or more"),
        ({"name": "tversky", "alpha": 0, "beta": 0}, "no error counts"),
        ({"name": "dice_ce", "label_smoothing": 0.1}, "label_smoothing=0.1: that is of training"),
    ],
)
def test_a_wrong_loss_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        SegmentationTask(3, loss=given)


def test_smoothing_that_would_be_ignored_is_refused():
    with pytest.raises(ConfigError, match=r"label_smoothing=0.1 would be ignored by loss=focal"):
        SegmentationTask(3, 0.1, loss="focal")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_losses_are_monai_s():
    losses = pytest.importorskip("monai.losses")  # ten seconds
    logits, labels = some_answers()
    common = {"softmax": True, "to_onehot_y": True, "include_background": False}
    smooth = {"smooth_nr": 1e-5, "smooth_dr": 1e-5}
    focal = losses.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0)
    dice = losses.DiceLoss(**common, **smooth)
    half = {"smooth_nr": 5e-6, "smooth_dr": 5e-6}  # ours doubles both sides
    tversky = losses.TverskyLoss(**common, **half, alpha=0.3, beta=0.7)
    there = labels[:, None]
    # MONAI's focal loss is a mean over the classes, too, of which all but one are 0
    expected = {
        "dice_ce": dice(logits, there) + torch.nn.functional.cross_entropy(logits, labels),
        "focal": 3 * focal(logits, there),
        "dice_focal": dice(logits, there) + 3 * focal(logits, there),
        "tversky": tversky(logits, there),
    }
    for name, value in expected.items():
        mine = make_segmentation_loss(name)(logits, labels, 1).mean()
        torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-6, msg=name)
