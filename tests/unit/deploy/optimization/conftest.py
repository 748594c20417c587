import os
from pathlib import Path

import pytest
import torch

from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine, VisionTransformer

FAULTY = """
import os
import signal
import time

from deepseek.deploy.runtimes.in_torch import Eager


class Crashing(Eager):
    def convert(self, engine, inputs, path, conversion):
        os.kill(os.getpid(), signal.SIGILL)


class Hanging(Eager):
    def convert(self, engine, inputs, path, conversion):
        print("hanging", flush=True)
        time.sleep(1000)


class Wrong(Eager):
    def open(self, path, execution):
        module = super().open(path, execution)
        return _Turned(module)


class Worse(Eager):
    precisions = ("int8",)

    def open(self, path, execution):
        module = super().open(path, type(execution)(execution.threads, "fp32"))
        return _Coarse(module)


import torch


class _Turned(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs):
        return self.module(inputs).flip(-1)


class _Coarse(_Turned):
    def forward(self, inputs):
        outputs = self.module(inputs)
        noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
        return outputs + 0.1 * outputs.abs().max() * noise.clamp(-2, 2)
"""
NAMES = ("Crashing", "Hanging", "Wrong", "Worse")


@pytest.fixture(scope="session")
def faulty_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "faulty_runtimes.py").write_text(FAULTY)
    return folder


@pytest.fixture
def faulty(faulty_folder, monkeypatch):
    """Runtimes of a third party that fail each in its own way, by name."""
    import importlib

    from deepseek.deploy.runtimes import RUNTIMES

    monkeypatch.syspath_prepend(faulty_folder)
    path = os.pathsep.join([str(faulty_folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    module = importlib.import_module("faulty_runtimes")
    entries = {**RUNTIMES._entries, **{name.lower(): getattr(module, name) for name in NAMES}}
    monkeypatch.setattr(RUNTIMES, "_entries", entries)
    return module


@pytest.fixture(scope="session")
def digits():
    return ImageDataset("digits", transform="resize_8", channels=1)


@pytest.fixture(scope="session")
def engine(digits):
    """A classifier that has learnt a little: an untrained one has no accuracy to lose."""
    torch.manual_seed(0)
    model = VisionTransformer(image_size=8, patch_size=4, num_layers=1, dim=32, heads=2, channels=1)
    engine = ModelEngine.wrap(model)
    engine.bind(digits.spec)
    batch, _ = digits.get_batch(list(range(600)), 0)
    optimizer = torch.optim.AdamW(engine.parameters(), lr=1e-2)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(engine(batch["inputs"]), batch["targets"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return engine.eval()


@pytest.fixture
def model_file(engine, tmp_path) -> Path:
    path = tmp_path / "digits.bin"
    engine.save(path)
    return path
