"""Two models on the same inputs: how far apart what they compute is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepseek.convert.family import Family
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier
from deepseek.models.eval_mode import evaluating

TOLERANCE = 1e-5
"""Largest difference in float32, relative to the largest output where that is above 1."""
_ANY_SIDE = 64  # pixels of a picture, where a model takes any


@dataclass(frozen=True)
class Difference:
    """How two models differ.

    Attributes:
        largest: of the absolute differences.
        scale: of the outputs: the largest absolute value.
        shape: of the outputs.
    """

    largest: float
    scale: float
    shape: tuple[int, ...]

    @property
    def is_small(self) -> bool:
        """Whether float32 arithmetic in another order explains it."""
        return self.largest <= TOLERANCE * max(1.0, self.scale)

    def describe(self) -> str:
        """Return one line."""
        shape = "x".join(map(str, self.shape))
        return f"largest difference {self.largest:.1e} of outputs up to {self.scale:.3g} ({shape})"


def compare(engine: ModelEngine, family: Family, original: nn.Module, seed: int = 0) -> Difference:
    """Run an engine and the model that it was made from on the same inputs.

    A model that has no head yet is compared by what the head would see.

    Args:
        engine: of one of our own architectures.
        family: knows how the other is run.
        original: the other.
        seed: of the inputs.
    """
    args = engine.config
    inputs = sample_inputs(engine, seed)
    with torch.no_grad(), evaluating(original), evaluating(engine.module):
        device = next((p.device for p in original.parameters()), torch.device("cpu"))
        theirs = family.run(original, inputs.to(device), args).cpu().float()
        with _identity_head(engine.module):
            ours = engine.module(inputs.to(engine.device)).cpu().float()
    pad_token = args.get("pad_token")
    if ours.ndim == 3 and pad_token is not None:
        ours, theirs = ours[inputs != pad_token], theirs[inputs != pad_token]
    return measure(ours, theirs)


def measure(ours: Tensor, theirs: Tensor) -> Difference:
    """Return the difference of two outputs; of different shapes they are infinitely far apart."""
    scale = float(theirs.abs().max())
    if ours.shape != theirs.shape or not bool(ours.isfinite().all() & theirs.isfinite().all()):
        return Difference(math.inf, scale, tuple(ours.shape))
    return Difference(float((ours - theirs).abs().max()), scale, tuple(ours.shape))


def sample_inputs(engine: ModelEngine, seed: int = 0) -> Tensor:
    """Return random inputs of a model of ours: two samples, the second of which is padded.

    Pixels are normal, float32; tokens int64.
    """
    module, args = engine.module, engine.config
    if not isinstance(module, Classifier):
        raise TypeError(f"{type(module).__name__} is not one of our own models")
    generator = torch.Generator().manual_seed(seed)
    if len(module.input_shape) == 3:
        shape = [size or _ANY_SIDE for size in module.input_shape]
        return torch.randn(2, *shape, generator=generator)
    num_tokens = min(args["context_length"], 24)
    vocab_size = args.get("vocab_size") or args["num_classes"]
    tokens = torch.randint(0, vocab_size, (2, num_tokens), generator=generator)
    pad_token = args.get("pad_token")
    if pad_token is not None:
        tokens[tokens == pad_token] = (pad_token + 1) % vocab_size
        tokens[1, num_tokens // 2 + 1 :] = pad_token
    return tokens


@contextmanager
def _identity_head(module: Any) -> Iterator[None]:
    """Let a model without a head give what its head would see."""
    if not module.makes_logits or module.config["num_classes"] is not None:
        yield
        return
    name = module.hints.head[-1]
    setattr(module, name, nn.Identity())
    try:
        yield
    finally:
        setattr(module, name, None)
