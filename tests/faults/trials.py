"""A run that can be killed: what the fault tests train, each trial in a process of its own.

Processes come from multiprocessing's fork server, which has imported torch once.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from deepseek.checkpoint import load_checkpoint
from deepseek.datasets import ImageDataset
from deepseek.errors import DeepSeekError
from deepseek.trainer import Trainer

CLOCKS = {"time_s", "epoch_s", "eta_s", "samples_per_s", "data_wait_share", "memory_bytes"}


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


def make_trainer(run: Path, *, resume: bool, net: dict | None = None, **settings) -> Trainer:
    """Return a trainer on augmented digits with all that makes an exact resume hard."""
    torch.manual_seed(0)
    rest, val = ImageDataset("digits", transform="resize_8", channels=1).split(0.02)
    train = rest.split(0.04)[1].with_transform("random_crop_8_pad_1")
    settings = {
        "batch_size": 16, "epochs": 3, "grad_accum_steps": 2, "ema_decay": 0.9,
        "checkpoint_every": 1, "log_every": 1, "loggers": ("jsonl",), "num_workers": 0,
        **settings,
    }  # fmt: skip
    return Trainer(Net(**(net or {})), train, val, run_dir=run, resume=resume or None, **settings)


def train(run: Path, resume: bool, net: dict | None, settings: dict) -> None:
    """Run to the end in this process; leave with the exit code of the error, if any."""
    os.environ["TRIAL"] = str(run.parent)
    torch.set_num_threads(1)
    (run.parent / "begun").touch()
    try:
        make_trainer(run, resume=resume, net=net, **settings).fit()
    except DeepSeekError as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def start(run: Path, resume: bool = False, net: dict | None = None, **settings):
    """Start `train` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    run.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=train, args=(run, resume, net, settings))
    process.start()
    return process


def has_checkpoint(run: Path) -> bool:
    """Return whether there is something to resume from."""
    return any((run / "checkpoints").glob("step_*"))


def run_with_kills(run: Path, delays_s: list[float], **settings) -> int:
    """Train to the end through SIGKILLs after the given delays; return how many hit a live run."""
    num_kills = 0
    for delay_s in [*delays_s, None]:
        process = start(run, resume=has_checkpoint(run), **settings)
        process.join(delay_s)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            num_kills += 1
            if not has_checkpoint(run) and run.exists():
                run.rename(run.with_name(f"{run.name}_before_its_first_save_{num_kills}"))
        elif process.exitcode == 0:
            break
        else:
            raise AssertionError(f"exit code {process.exitcode}")
    return num_kills


def outcome(run: Path) -> dict:
    """Return all that must be the same: weights, their average, optimizer, metrics."""
    newest = max((run / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))
    checkpoint = load_checkpoint(newest)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]
    return {"step": checkpoint.step, "tensors": checkpoint.tensors, "metrics": metrics}


def assert_same(first: dict, second: dict) -> None:
    """Compare two outcomes bit for bit."""
    assert first["step"] == second["step"]
    assert first["metrics"] == second["metrics"]
    for group, tensors in first["tensors"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second["tensors"][group][name]), f"{group}/{name}"
