import numpy as np
import pytest
import torch

from deepseek.datasets import DataSpec, FieldSpec
from deepseek.errors import ConfigError
from deepseek.medical import DetectionTask, NoduleDataset, match_marks
from deepseek.medical.detection import REPORTED_RATE, crop_findings, make_task, stride_of
from deepseek.models import ModelEngine
from deepseek.trainer import Callback, Trainer
from deepseek.trainer.center_loss import center_targets


def some_batch(count=6, seed=0):
    """Outputs of noise for crops of 16 voxels, and centres in every second."""
    torch.manual_seed(seed)
    targets = torch.cat([torch.rand(count, 1, 3) * 12 + 2, torch.rand(count, 1, 1) * 6 + 5], -1)
    targets[1::2] = -1
    outputs = torch.randn(count, 2, 8, 8, 8)
    outputs[:, 1] = 1.5
    batch = {
        "inputs": torch.zeros(count, 1, 16, 16, 16),
        "targets": targets,
        "box": torch.tensor([[0, 16]] * 3).expand(count, 3, 2).clone(),
    }
    return outputs, batch


def compute(task, parts):
    metrics = task.new_metrics()
    for outputs, batch in parts:
        task.update_metrics(metrics, outputs, batch)
    return {name: metric.compute() for name, metric in metrics.items()}


def test_metrics_are_those_of_the_matcher_over_all_batches():
    task = DetectionTask()
    parts = [some_batch(seed=seed) for seed in range(4)]
    found = compute(task, parts)
    findings, marks = [], []
    for outputs, batch in parts:
        findings += crop_findings(batch)
        marks += task.marks(outputs, batch)
    names = [str(number) for number in range(len(findings))]
    froc = match_marks(
        dict(zip(names, findings, strict=True)), dict(zip(names, marks, strict=True))
    )
    assert found["cpm"] == pytest.approx(froc.cpm, abs=0.02)
    assert found["average_precision"] == pytest.approx(froc.average_precision, abs=0.02)
    assert found["sensitivity_at_8"] == pytest.approx(froc.sensitivity([8])[0], abs=0.02)
    assert 0 < found["cpm"] < 1
    exact = froc.threshold(REPORTED_RATE)
    assert found["min_score"] == pytest.approx(exact, rel=0.02)
    is_false = froc.false_scores >= found["min_score"]
    assert is_false.sum() <= REPORTED_RATE * froc.num_scans


def scored(number, num_scores=2):
    outputs, batch = some_batch(count=3, seed=number)
    extra = torch.randn(3, num_scores, *outputs.shape[2:])
    batch |= {"score.malignancy": torch.tensor([4.0, torch.nan, 2.0])}
    batch |= {"score.texture": torch.full((3,), torch.nan)}
    return torch.cat([outputs[:, :1], extra, outputs[:, 1:]], 1).requires_grad_(), batch


def test_scores_that_are_missing_have_no_loss_and_no_error():
    outputs, batch = scored(0)
    plain, joint = DetectionTask(), DetectionTask(scores=["malignancy", "texture"])
    least = plain.loss(outputs[:, [0, -1]], batch)
    loss = joint.loss(outputs, batch)
    loss.backward()
    stride = stride_of(outputs, batch["inputs"])
    _, centers = center_targets(batch["targets"], outputs.shape[2:], stride, (1, 1, 1))
    known = centers.sum(1)[[0, 2]]
    wanted = torch.tensor([4.0, 2.0])[:, None, None, None]
    missed = ((outputs[[0, 2], 1] - wanted).abs() * known).sum()
    assert loss.item() == pytest.approx(least.item() + 0.25 * missed.item(), rel=1e-5)
    grad = outputs.grad
    assert grad[0, 1].any()
    assert not grad[1, 1].any()
    assert not grad[:, 2].any()
    found = compute(joint, [(outputs.detach(), batch)])
    told = outputs[[0, 2], 1].clamp(1, 5)  # what a detector says
    error = ((told - wanted).abs() * known).sum() / known.sum()
    assert found["malignancy_error"] == pytest.approx(error.item(), rel=1e-5)
    assert np.isnan(found["texture_error"])
    for task in (plain, joint):
        with pytest.raises(ConfigError, match="the model tells 1 scores, the data have"):
            task.loss(scored(0, num_scores=1)[0], batch)


def test_ranks_add_their_counts():
    task, parts = DetectionTask(), [some_batch(seed=seed) for seed in range(2)]
    both, metrics = compute(task, parts), [task.new_metrics() for _ in parts]
    for own, part in zip(metrics, parts, strict=True):
        task.update_metrics(own, *part)
    for name, metric in metrics[0].items():
        sums = [a + b for a, b in zip(metric.sums(), metrics[1][name].sums(), strict=True)]
        metric.take_sums(sums)
        assert metric.compute() == pytest.approx(both[name])


def test_marks_where_a_crop_is_mirrored_do_not_count():
    outputs, batch = some_batch(count=2)
    outputs[:, 0] = -9.0
    outputs[:, 0, 6, 6, 6] = 3.0  # voxel 12.5
    assert [each.scores.max() > 0.9 for each in DetectionTask().marks(outputs, batch)] == [True] * 2
    batch["box"][1, 0, 1] = 12
    marks = DetectionTask().marks(outputs, batch)
    assert [each.scores.max(initial=0) > 0.9 for each in marks] == [True, False]


def test_crops_without_any_nodule_have_no_sensitivity():
    outputs, batch = some_batch()
    batch["targets"][:] = -1
    found = compute(DetectionTask(), [(outputs, batch)])
    assert np.isnan(found["cpm"])
    assert found["loss"] > 0


def test_the_loss_of_a_batch_is_that_of_its_parts():
    task, (outputs, batch) = DetectionTask(), some_batch()
    parts = [
        task.loss(outputs[i : i + 1], {name: value[i : i + 1] for name, value in batch.items()})
        for i in range(6)
    ]
    assert task.loss(outputs, batch).item() == pytest.approx(sum(parts).item(), rel=1e-5)
    assert set(task.predictions(outputs, batch)) == {"loss", "score"}


def test_one_class_is_learnt():
    fields = {"inputs": FieldSpec((1, 8, 8, 8), "float32")}
    spec = DataSpec("detection", fields, ("a", "b"), (1, 1))
    with pytest.raises(ConfigError, match="num_classes=2"):
        make_task(spec, 0.0)


@pytest.fixture
def balls(tmp_path):
    """Training and validation crops of cubes with a bright ball each."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"))
    centers = rng.integers(8, 12, (12, 3))
    mask = np.stack([((grid - c.reshape(3, 1, 1, 1)) ** 2).sum(0) <= 9 for c in centers])
    image = (rng.integers(0, 90, mask.shape) + 150 * mask).astype(np.uint8)
    names = np.array([f"{number}_a" for number in range(12)])
    np.savez(tmp_path / "balls.npz", image=image, mask=mask, name=names)
    data = NoduleDataset(tmp_path / "balls.npz", "patch_12x12x12+flip", crops_per_cube=2)
    return data.split_fold(0, 4)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, metrics):
        if trainer.step == self.step:
            trainer.request_stop("enough")


def make_trainer(balls, folder, **options):
    torch.manual_seed(0)
    model = ModelEngine("center_detector3d", features=[8, 8], blocks=1, skipped_levels=0)
    settings = {"epochs": 6, "batch_size": 3, "lr": 1e-2, "num_workers": 0, "precision": "fp32"}
    settings |= {"eval_every": 18, "loggers": ["jsonl"], **options}
    return Trainer(model, *balls, run_dir=folder, **settings)


def test_balls_are_found_after_some_steps(balls, tmp_path):
    trainer = make_trainer(balls, tmp_path / "run")
    trainer.fit()
    assert trainer.evaluate()["cpm"] > 0.8


def test_a_resumed_run_is_the_same(balls, tmp_path):
    whole = make_trainer(balls, tmp_path / "whole", epochs=2)
    whole.fit()
    make_trainer(balls, tmp_path / "halves", epochs=2, callbacks=[StopAt(5)]).fit()
    resumed = make_trainer(balls, tmp_path / "halves", epochs=2, resume=True)
    resumed.fit()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
