"""Two models on the same inputs: how far apart what they compute is."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deepseek.convert.family import Family
from deepseek.models import ModelEngine
from deepseek.models.classifier import Classifier
from deepseek.models.eval_mode import evaluating
from deepseek.models.full_float32 import full_float32
from deepseek.models.zoo import timm_input_shape

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


def compare(
    engine: ModelEngine,
    family: Family,
    original: nn.Module,
    seed: int = 0,
    *,
    ours: Mapping[str, Tensor] | None = None,
    theirs: Mapping[str, Tensor] | None = None,
) -> Difference:
    """Run an engine and the model that it was made from on the same inputs, in float32.

    A model that has no head yet is compared by what the head would see.

    Args:
        engine: of one of our own architectures.
        family: knows how the other is run.
        original: the other; weights of half precision are widened while it runs.
        seed: of the inputs.
        ours: weights that take the place of the engine's for this: name -> tensor.
        theirs: the same weights for the original, under its names.
    """
    args = engine.config
    original = _beside(engine, original)
    inputs = sample_inputs(engine, seed)
    with torch.no_grad(), full_float32(), evaluating(original), evaluating(engine.module):
        device = next((p.device for p in original.parameters()), torch.device("cpu"))
        wanted = _Call(original, lambda module, x: family.run(module, x, args))
        instead = {**family.exact_buffers(original, args), **(theirs or {})}
        want = wanted.widened(inputs.to(device), instead).cpu().float()
        with _identity_head(engine.module):
            call = _Call(engine.module, lambda module, x: module(x))
            found = call.widened(inputs.to(engine.device), ours or {}).cpu().float()
    pad_token = args.get("pad_token")
    if found.ndim == 3 and pad_token is not None and want.shape[:2] == inputs.shape:
        found, want = found[inputs != pad_token], want[inputs != pad_token]
    return measure(found, want)


def _beside(engine: ModelEngine, original: nn.Module) -> nn.Module:
    """Return the original, or a copy of it, on the device of ours, which rounds otherwise.

    One that is spread over several devices stays as it is.
    """
    devices = {parameter.device for parameter in original.parameters()}
    is_elsewhere = len(devices) == 1 and devices != {engine.device}
    return copy.deepcopy(original).to(engine.device) if is_elsewhere else original


def compare_modules(
    ours: nn.Module, theirs: nn.Module, instead: Mapping[str, Tensor]
) -> Difference:
    """Run two models of timm with the same names of weights on the same pictures, in float32.

    Args:
        ours: of timm's factory.
        theirs: the other; weights of half precision are widened while it runs.
        instead: weights that take the place of those of both for this: name -> tensor.
    """
    device = next((p.device for p in theirs.parameters()), torch.device("cpu"))
    # Inception needs 75 pixels
    shape = [size or 2 * _ANY_SIDE for size in timm_input_shape(ours, {})]
    pictures = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    ours = copy.deepcopy(ours).to(device)  # another device rounds otherwise
    with torch.no_grad(), full_float32(), evaluating(ours), evaluating(theirs):
        found = _Call(ours, _run_plainly).widened(pictures, instead).cpu().float()
        want = _Call(theirs, _run_plainly).widened(pictures, instead).cpu().float()
    return measure(found, want)


def _run_plainly(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs)


class _Call(nn.Module):
    """A way to run a model, as a module: so torch can exchange its weights for one call."""

    def __init__(self, module: nn.Module, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self.module, inputs)

    def widened(self, inputs: Tensor, instead: Mapping[str, Tensor]) -> Tensor:
        """Run with weights of half precision as float32, and those of `instead`, by their names."""
        weights = {}
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            taken = instead.get(name.removeprefix("module."))
            if taken is not None:
                weights[name] = taken.to(tensor.device)
            elif tensor.dtype in (torch.float16, torch.bfloat16):
                weights[name] = tensor.float()
        # nothing to exchange: run as it is, compiled modules and all
        return functional_call(self, weights, (inputs,)) if weights else self(inputs)


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
