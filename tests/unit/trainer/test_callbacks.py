import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.trainer import EarlyStopping, History, RegressionTask, Trainer
from deepseek.trainer.callbacks import is_better


def test_nan_never_beats_and_is_beaten_by_any_number():
    for higher in (True, False):
        assert not is_better(math.nan, None, higher)
        assert not is_better(math.nan, 0.5, higher)
        assert is_better(0.1, None, higher)
    assert is_better(0.6, 0.5, higher_is_better=True)
    assert is_better(0.4, 0.5, higher_is_better=False)


def test_a_first_evaluation_of_nan_does_not_stop_a_run_that_improves():
    asked = []
    trainer = SimpleNamespace(request_stop=asked.append)
    stopping = EarlyStopping("val_f1", patience=2, higher_is_better=True)
    for value in (math.nan, 0.1, 0.2, 0.3, 0.25):
        stopping.on_eval_end(trainer, {"val_f1": value})
    assert not asked
    assert stopping.best == 0.3
    stopping.on_eval_end(trainer, {"val_f1": 0.2})
    assert asked == ["val_f1 did not improve in 2 evaluations (best 0.3)"]


def test_a_metric_that_is_never_a_number_stops_and_says_so():
    asked = []
    stopping = EarlyStopping("val_f1", patience=1, higher_is_better=True)
    stopping.on_eval_end(SimpleNamespace(request_stop=asked.append), {"val_f1": math.nan})
    assert asked == ["val_f1 did not improve in 1 evaluations (never a number)"]


def test_the_best_epoch_is_one_whose_metric_is_a_number(tmp_path):
    records = [{"epoch": n, "val_f1": value} for n, value in enumerate((math.nan, 0.2, 0.1))]
    assert History(records, tmp_path, "val_f1", True, "finished").best["epoch"] == 1


@pytest.mark.parametrize(
    ("monitor", "higher"),
    [("val_mae", False), ("val_age_rmse", False), ("val_malignancy_error", False),
     ("val_loss", False), ("val_macro_f1", True), ("val_accuracy", True)],
)  # fmt: skip
def test_errors_are_better_where_they_are_lower(monitor, higher, tmp_path):
    inputs = torch.randn(8, 3)
    data = TensorDataset(inputs, inputs.sum(1))
    trainer = Trainer(
        nn.Linear(3, 1), data, data, task=RegressionTask(), monitor=monitor, run_dir=tmp_path / "r"
    )
    assert trainer.higher_is_better == higher
