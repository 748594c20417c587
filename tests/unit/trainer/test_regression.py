import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import JointDataset
from deepseek.trainer import ClassificationTask, MultiTask, RegressionTask, Trainer

TARGETS = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [2.0, 4.0]])


def test_numbers_that_are_missing_do_not_count_in_a_regression():
    task, batch = RegressionTask(), {"targets": TARGETS}
    outputs = torch.tensor([[3.0, 7.0], [5.0, 5.0], [2.0, 1.0]], requires_grad=True)
    assert task.count_items(batch) == 2
    assert task.count_items({"targets": torch.empty(0)}) == 0
    loss = task.loss(outputs, batch)
    assert float(loss.detach()) == 4 + 9 / 2
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[4, 0], [0, 0], [0, -3]]
    metrics = task.new_metrics()
    for row in range(3):
        task.update_metrics(metrics, outputs[row : row + 1], {"targets": TARGETS[row : row + 1]})
    known = torch.tensor([1.0, 2.0, 4.0])
    r2 = 1 - (4 + 9) / float((known - known.mean()).square().sum())
    found = {name: metric.compute() for name, metric in metrics.items()}
    assert found == pytest.approx({"loss": 8.5 / 2, "mae": (2 + 3 / 2) / 2, "r2": r2})
    losses = task.predictions(outputs, batch)["loss"].tolist()
    assert losses == pytest.approx([4, math.nan, 4.5], nan_ok=True)


def test_a_run_learns_from_the_numbers_that_are_there(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator)
    y = x @ torch.randn(3, 2, generator=generator)
    y[::3, 0], y[:10] = math.nan, math.nan  # there are batches without a number
    data = TensorDataset(x, y)
    trainer = Trainer(
        nn.Linear(3, 2), data, data, task=RegressionTask(), batch_size=2, epochs=4, lr=0.1,
        loggers=(), num_workers=0, device="cpu", run_dir=tmp_path / "run",
    )  # fmt: skip
    history = trainer.fit()
    assert history.best["val_r2"] > 0.9
    assert math.isfinite(history.series("val_loss")[-1])


def test_of_several_tasks_a_number_of_a_label_may_be_missing():
    data = JointDataset(TensorDataset(torch.zeros(3, 2)), {"place": TARGETS, "kind": [0, 1, -100]})
    batch, _ = data.get_batch(range(3), 0)
    task = MultiTask({"place": RegressionTask(), "kind": ClassificationTask(2)})
    assert task.count_labels(batch) == [2, 2]
    outputs = {"place": torch.zeros(3, 2), "kind": torch.zeros(3, 2)}
    assert [float(loss) for loss in task.losses(outputs, batch)] == pytest.approx(
        [1 + (4 + 16) / 2, 2 * math.log(2)]
    )
