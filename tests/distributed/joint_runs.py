"""Runs of several tasks, to be compared over layouts."""

import math

import torch
from tests.distributed.ranks import Trajectory
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import JointDataset, MultiTaskDataset
from deepseek.models import Encoder, MultiHead
from deepseek.trainer import ClassificationTask, MultiTask, RegressionTask, Trainer


class Parts(Trajectory):
    """Losses and weights of the tasks, too."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def on_step_end(self, trainer, result):
        super().on_step_end(trainer, result)
        self.parts.append(dict(result.parts))


def make_joint(is_mixture):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(41, 6, generator=generator)  # the last batch of an epoch has one sample
    kind, size = x[:, :3].argmax(1), x.sum(1)
    if is_mixture:
        one, two = TensorDataset(x[:30], kind[:30]), TensorDataset(x[30:], size[30:])
        return MultiTaskDataset({"kind": one, "size": two}, alpha=0.3)
    kind[::3], size[1::4] = -100, math.nan
    return JointDataset(TensorDataset(x), {"kind": kind, "size": size})


def make_model(is_text=False):
    torch.manual_seed(5)
    if is_text:
        sizes = {"num_layers": 2, "dim": 16, "heads": 2, "dropout": 0.0}
        return MultiHead.around(Encoder(20, 8, **sizes, outputs="hidden"))
    return MultiHead.around(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)), dim=8)


def make_texts():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 20, (41, 8), generator=generator)
    return JointDataset(
        TensorDataset(tokens), {"kind": tokens[:, 0] % 3, "size": tokens.float().mean(1)}
    )


def train_each(weightings, folder, is_mixture=False, is_text=False, **settings):
    """Return (losses, gradient norms, parts) of a run with each weighting."""
    found = {}
    for name in weightings:
        parts = Parts()
        task = MultiTask({"kind": ClassificationTask(3), "size": RegressionTask()}, name)
        data = make_texts() if is_text else make_joint(is_mixture)
        chosen = {
            "batch_size": 8, "epochs": 2, "lr": 1e-2, "grad_accum_steps": 2, "precision": "fp32",
            "loggers": ["jsonl"], "num_workers": 0, "device": "cpu", "clip_grad_norm": 0.5,
            "predict_memory": False, **settings,
        }  # fmt: skip
        trainer = Trainer(
            make_model(is_text), data, data, task=task, run_dir=folder / name, callbacks=[parts],
            **chosen,
        )  # fmt: skip
        history = trainer.fit()
        found[name] = parts.losses, parts.norms, parts.parts, history.records[-1]["val_loss"]
    return found
