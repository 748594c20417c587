import asyncio
import io
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from deepseek.datasets import ImageDataset, TextDataset
from deepseek.deploy.service.app import make_app
from deepseek.deploy.service.measures import Measures
from deepseek.deploy.service.protection import Limits
from deepseek.deploy.service.served_model import ModelSettings, ServedModel
from deepseek.deploy.service.shelf import Pace, Shelf, Version
from deepseek.models import Encoder, ModelEngine, VisionTransformer


class InThread:
    """A model that computes in a thread of this process: what a process of its own does."""

    is_up = True

    def __init__(self, path, **settings):
        self._model = ServedModel.open(ModelSettings(path, "cpu", **settings))
        self.facts = self._model.facts

    async def compute(self, samples, expires):
        return await asyncio.to_thread(self._model.compute, samples)

    def close(self):
        pass


def make_engine(seed=0):
    """Return a small classifier of the built-in digits, untrained."""
    torch.manual_seed(seed)
    model = VisionTransformer(image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1)
    engine = ModelEngine.wrap(model)
    engine.bind(ImageDataset("digits", transform="resize_8", channels=1).spec)
    with torch.no_grad():
        for parameter in engine.parameters():  # a new head is all zeros: no class is the best one
            parameter += 0.3 * torch.randn_like(parameter)
    return engine


def make_text_engine(folder):
    """Return a small classifier of texts, untrained; `folder` gets what its words are from."""
    rows = [f"a {'good' if n % 2 else 'bad'} film,{'pos' if n % 2 else 'neg'}" for n in range(16)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    data = TextDataset(
        folder / "reviews.csv", "sequence_classification", tokenizer="wordpiece", vocab_size=60,
        sequence_length=16, cache=folder / "cache",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Encoder(
        vocab_size=data.tokenizer.vocab_size, context_length=16, num_layers=1, dim=16, heads=2,
        outputs="sequence",
    )  # fmt: skip
    engine = ModelEngine.wrap(model, data.spec)
    with torch.no_grad():
        for parameter in engine.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return engine


def png(size=(8, 8), seed=0, kind="PNG"):
    """Return the bytes of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """NAME/VERSION.bin: digits/v1, v2 and v10."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "digits").mkdir()
    for seed, version in enumerate(("v1", "v2", "v10")):
        make_engine(seed).save(folder / "digits" / f"{version}.bin")
    return folder


def build(name, version, path):
    return Version(name, version, [InThread(path)], Pace(), LIMITS)


LIMITS = Limits(
    max_body_bytes=200_000,
    body_s=2.0,
    timeout_s=20.0,
    max_pixels=10_000,
    max_samples=8,
    max_chars=1000,
    max_voxels=20_000,
)


@pytest.fixture
def ask(model_folder):
    """Run `talk(client)`, a coroutine function, against a service of the folder."""

    def run(
        talk, hashes=(), *, is_loopback=True, base_url="http://localhost:8000", files=None,
        build=build,
    ):  # fmt: skip
        @asynccontextmanager
        async def started():
            shelf = Shelf(files or {}, None if files else model_folder, build)
            shelf.open_all()
            app = make_app(shelf, Measures(), LIMITS, hashes, is_loopback=is_loopback)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                try:
                    yield client
                finally:
                    await shelf.close()

        async def main():
            async with started() as client:
                return await talk(client)

        return asyncio.run(main())

    return run
