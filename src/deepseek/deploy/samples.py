"""Inputs of a model as it takes them: a few of a data set, or random ones."""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.datasets import DataLoader
from deepseek.datasets.evaluation_view import evaluation_dataset
from deepseek.datasets.spec import DataSpec, FieldSpec
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine


def draw_inputs(engine: ModelEngine, data, count: int) -> Tensor:
    """Return samples (count, ...) of data, fewer where there are not so many.

    Args:
        engine: with its data spec; tokens are padded to the length that it says.
        data: a data set, a bound `DataLoader`, or a tensor (N, ...).
        count: how many; those of a data set are drawn at random, always the same ones.

    Raises:
        ConfigError: the data are of another kind, or another shape than the spec says.
    """
    if isinstance(data, str | Path):
        raise ConfigError(
            f"data={str(data)!r} is a path, which does not say how it is read",
            fix="give a data set, such as ImageDataset(path, transform=...), or a tensor",
        )
    spec = spec_of(engine)
    if isinstance(data, Tensor):
        inputs = data[:count]
    else:
        recipe = DataLoader(batch_size=count, shuffle=True, seed=0, num_workers=0)
        inputs = next(iter(recipe.bind(evaluation_dataset(data))))["inputs"]
    shape = spec.fields["inputs"].shape
    if len(shape) == 1 and inputs.ndim == 2 and not inputs.is_floating_point():
        inputs = F.pad(inputs, (0, max(0, shape[0] - inputs.shape[1])), value=spec.pad_token or 0)
    if inputs.shape[1:] != shape:
        raise ConfigError(
            f"the data have inputs of shape {tuple(inputs.shape[1:])}, the model takes {shape}",
            fix="give data as the model was trained on",
        )
    return inputs


def random_inputs(engine: ModelEngine, count: int) -> Tensor:
    """Return random samples (count, ...) of what an engine takes, on the CPU; always the same.

    Raises:
        ConfigError: nothing is known of its inputs.
    """
    field = spec_of(engine).fields["inputs"]
    generator = torch.Generator().manual_seed(0)
    shape = (count, *field.shape)
    if field.dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if field.dtype.startswith("int"):
        num_tokens = engine.config.get("vocab_size") or engine.num_classes or 2
        return torch.randint(0, num_tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def with_spec(engine: ModelEngine, data: object) -> ModelEngine:
    """Return an engine that says what it takes: one without a spec takes what a tensor is."""
    if engine.spec is not None or not isinstance(data, Tensor):
        return engine
    dtype = str(data.dtype).removeprefix("torch.")
    fields = {"inputs": FieldSpec(tuple(data.shape[1:]), dtype)}
    known = copy.copy(engine)
    known.spec = DataSpec("unknown", fields)
    return known


def spec_of(engine: ModelEngine) -> DataSpec:
    """Return the data spec of an engine.

    Raises:
        ConfigError: it has none, or one that does not say what the model takes.
    """
    if engine.spec is None or "inputs" not in engine.spec.fields:
        raise ConfigError(
            "the model does not say what it takes: it has no data spec",
            fix="save it after training, or bind a spec: engine.bind(data.spec)",
        )
    return engine.spec
