"""Runs a function on several ranks of one machine, and what they train there.

Ranks are forked from a server that has imported torch once; what a function returns must be
picklable, and the function one of a module.
"""

import contextlib
import multiprocessing
import os
import pickle
import random
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from deepseek.datasets import TokenDataset
from deepseek.models import GPT, Encoder, Llama, VisionTransformer
from deepseek.trainer import Callback, Trainer

PRELOADED = (
    "torch", "torch.distributed.tensor.parallel", "torch.distributed.pipelining",
    "torch.distributed.fsdp", "deepseek.trainer", "deepseek.parallel.apply",
    "deepseek.deploy.report",
)  # fmt: skip
TIMEOUT_S = 240.0
NUM_CLASSES = 5
VOCABULARY = 67  # not a multiple of 64: the padding is used


class RankFailed(AssertionError):
    """A rank raised or ended; `codes` are the exit codes of all."""

    def __init__(self, message, codes):
        super().__init__(message)
        self.codes = codes


def run_ranks(size, function, *arguments, folder, environment=None, timeout_s=TIMEOUT_S, **options):
    """Return what `function(*arguments, **options)` returned on each rank.

    Raises:
        RankFailed: a rank did not end well, with the traceback of the first that raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        **(environment or {}),
    }
    started = [
        context.Process(
            target=_run, args=(rank, shared, sys.path, folder, function, arguments, options)
        )
        for rank in range(size)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + timeout_s
    while any(p.is_alive() for p in started) and time.monotonic() < deadline:
        if any(p.exitcode for p in started):
            deadline = min(deadline, time.monotonic() + 20)  # the others may end by themselves
        time.sleep(0.01)
    late = [rank for rank, p in enumerate(started) if p.is_alive()]
    for process in started:
        process.kill()
        process.join()
    codes = [p.exitcode for p in started]
    if late or any(codes):
        notes = [path.read_text() for path in sorted(folder.glob("failed_*"))]
        raise RankFailed(f"late {late}, codes {codes}\n" + "\n".join(notes[:2]), codes)
    return [pickle.loads((folder / f"result_{rank}").read_bytes()) for rank in range(size)]


def _run(rank, environment, path, folder, function, arguments, options):
    sys.path[:] = path
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    torch.set_num_threads(1)
    output = open(folder / f"output_{rank}.txt", "w", buffering=1)  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    try:
        result = function(*arguments, **options)
    except BaseException as error:
        (folder / f"failed_{rank}").write_text(f"rank {rank}: {traceback.format_exc()[-3000:]}")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(getattr(error, "exit_code", 1) or 1)
    (folder / f"result_{rank}").write_bytes(pickle.dumps(result))


def free_port():
    """Return a port below those that the kernel gives away: other tests' Gloo cannot take it."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


# -- what is trained -------------------------------------------------------------------------


def make_model(kind, dropout=0.0, seed=1):
    torch.manual_seed(seed)
    sizes = {"num_layers": 4, "dim": 32, "heads": 4, "dropout": dropout}
    if kind == "vit":
        return VisionTransformer(image_size=8, patch_size=4, channels=1, **sizes)
    if kind == "encoder":
        return Encoder(vocab_size=20, context_length=8, **sizes)
    if kind == "masked_encoder":
        return Encoder(VOCABULARY, 8, **sizes, pad_token=None, outputs="vocabulary")
    if kind == "gpt":
        return GPT(context_length=8, **sizes)
    if kind == "gpt2":
        return GPT(context_length=8, **sizes, bias=True, activation="gelu_tanh")
    if kind == "llama":
        return Llama(8, 4, 32, heads=4, kv_heads=2, hidden_dim=48, qkv_bias=True)
    if kind == "qwen3":
        return Llama(8, 4, 32, heads=4, kv_heads=2, hidden_dim=48, head_dim=12, qk_norm=True)
    if kind == "noisy":
        return Noisy()
    raise KeyError(kind)


class Noisy(nn.Module):
    """A user's module: it draws as many numbers as there are samples."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, NUM_CLASSES)

    def forward(self, inputs):
        return self.linear((inputs + torch.rand(inputs.shape)).flatten(1))


def make_data(kind, num_samples=70):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, NUM_CLASSES, (num_samples,), generator=generator)
    if kind in ("vit", "noisy"):
        return TensorDataset(torch.randn(num_samples, 1, 8, 8, generator=generator), labels)
    if kind == "encoder":
        tokens = torch.randint(0, 20, (num_samples, 8), generator=generator)  # 0 is padding
        return TensorDataset(tokens, labels)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, num_samples * 8 + 1)
    return TokenDataset(tokens, 8, [chr(40 + i) for i in range(VOCABULARY)])


class Trajectory(Callback):
    """Loss and gradient norm of every step."""

    def __init__(self):
        self.losses, self.norms = [], []

    def on_step_end(self, trainer, result):
        self.losses.append(float(result.loss_sum) / result.num_items)
        self.norms.append(float(result.grad_norm))


def train(kind, run_dir, **settings):
    """Train, and return (losses, norms, record of the last epoch).

    Args:
        kind: of model and data.
        run_dir: run folder.
        settings: of `Trainer`; and `dropout`, `data_size`, `val_size`.
    """
    trajectory = Trajectory()
    callbacks = [trajectory, *settings.pop("callbacks", ())]
    chosen = {
        "batch_size": 16, "max_steps": 20, "lr": 1e-3, "grad_accum_steps": 2, "precision": "fp32",
        "clip_grad_norm": 0.5, "loggers": ["jsonl"], "num_workers": 0, "device": "cpu",
        "predict_memory": False, **settings,
    }  # fmt: skip
    model = make_model(kind, chosen.pop("dropout", 0.0))
    data, val_size = make_data(kind, chosen.pop("data_size", 70)), chosen.pop("val_size", None)
    val_data = None if val_size is None else make_data(kind, val_size)
    trainer = Trainer(model, data, val_data, run_dir=run_dir, callbacks=callbacks, **chosen)
    history = trainer.fit()
    last = history.records[-1] if history.records else {}
    return trajectory.losses, trajectory.norms, last
