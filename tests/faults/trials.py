"""A run that can be killed: what the fault tests train, each trial in a process of its own."""

import os
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from deepseek.datasets import ImageDataset
from deepseek.trainer import Trainer
from deepseek.trainer.chaos import Factory, differences, read_outcome


class Net(nn.Module):
    """Draws in every step (dropout) and keeps running statistics (batch norm)."""

    def __init__(self, delay_s: float = 0.0, at_step: int = -1, in_eval: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(144, 10),
        )  # fmt: skip
        self.delay_s, self.at_step, self.in_eval, self.num_calls = delay_s, at_step, in_eval, 0

    def forward(self, inputs):
        outputs = self.layers(inputs)
        if self.training != self.in_eval:
            self.num_calls += 1
            if self.num_calls == self.at_step:
                (Path(os.environ["TRIAL"]) / "stuck").touch()
                time.sleep(self.delay_s)
        return outputs


def make_trainer(run: Path, resume: bool, *, net: dict | None = None, **settings) -> Trainer:
    """Return a trainer on augmented digits with all that makes an exact resume hard."""
    os.environ["TRIAL"] = str(run.parent)
    torch.manual_seed(0)
    rest, val = ImageDataset("digits", transform="resize_8", channels=1).split(0.02)
    train = rest.split(0.04)[1].with_transform("random_crop_8_pad_1")
    settings = {
        "batch_size": 16, "epochs": 3, "grad_accum_steps": 2, "ema_decay": 0.9,
        "checkpoint_every": 1, "log_every": 1, "loggers": ("jsonl",), "num_workers": 0,
        **settings,
    }  # fmt: skip
    return Trainer(Net(**(net or {})), train, val, run_dir=run, resume=resume or None, **settings)


def factory(net: dict | None = None, **settings) -> Factory:
    """Return what makes such a trainer in any process."""
    return partial(make_trainer, net=net, **settings)


def assert_same(first: Path, second: Path) -> None:
    """Compare what two runs came to, bit for bit."""
    assert differences(read_outcome(first), read_outcome(second)) == []
