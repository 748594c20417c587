"""A torch optimizer's state as parts of named tensors and JSON, and back: no pickle.

A tensor is called `WEIGHT/KEY`, such as `blocks.0.fc1.weight/exp_avg`: by the name of its weight,
not by a number, for a rank holds only some of the weights.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from deepseek.checkpoint.stored_tensors import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.tensor_part import TensorPart

# (name of a weight, something of its shape or for its blocks, what is added to the name) -> parts
Cut = Callable[[str, Tensor, str], Iterable[TensorPart]]
OF_THE_RUN = ("weight_decay", "lr_share", "starts_at", "fused")
"""Settings of a group that follow from those of the run that goes on, and from its device."""


def split_state(
    optimizer: Optimizer, weights: Mapping[str, Tensor], cut: Cut
) -> tuple[list[TensorPart], dict]:
    """Return (the tensors, JSON-able rest).

    Args:
        optimizer: whose state is saved.
        weights: what it updates, by name.
        cut: says where a tensor of the shape of a weight, or of its blocks, lies in the whole.
    """
    parts: list[TensorPart] = []
    scalars: dict[str, dict] = {}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if not isinstance(value, Tensor):
                scalars.setdefault(name, {})[key] = value
            elif value.shape == weight.shape or is_blockwise(value, weight):
                parts += cut(name, value.detach().contiguous(), f"/{key}")
            else:  # a count: the same on every rank that has the weight
                is_written = any(part.is_written for part in cut(name, weight, ""))
                parts.append(TensorPart.whole(f"{name}/{key}", value.detach(), is_written))
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return parts, {"scalars": scalars, "param_groups": groups}


def is_blockwise(value: Tensor, weight: Tensor) -> bool:
    """Return whether something has a number for each of the blocks that rows are cut into."""
    return (
        weight.ndim >= 2
        and value.ndim == 2
        and value.numel() > 0
        and len(value) == len(weight)
        and weight[0].numel() % value.shape[1] == 0
    )


def _plain(value):
    return float(value) if isinstance(value, Tensor) else value


def join_state(
    optimizer: Optimizer,
    weights: Mapping[str, Tensor],
    cut: Cut,
    stored: StoredTensors,
    rest: dict,
    *,
    stays_on_host: bool = False,
) -> None:
    """Load what `split_state` returned, on this or another layout, into `optimizer`.

    Args:
        optimizer: whose state is replaced.
        weights: what it updates, by name.
        cut: as for `split_state`.
        stored: the tensors.
        rest: the rest.
        stays_on_host: leave what is larger than a number in the memory of the host.

    Raises:
        CheckpointError: the optimizer has other parameter groups than the saved one, or lacks a
            weight.
    """
    by_weight: dict[str, list[str]] = {}
    for name in stored:
        weight, _, key = name.rpartition("/")
        by_weight.setdefault(weight, []).append(key)
    state: dict[int, dict] = {}
    on_host: dict[Tensor, dict] = {}
    numbers = _numbers(optimizer)
    for name, weight in weights.items():
        values = dict(rest["scalars"].get(name, {}))
        for key in by_weight.get(name, []):
            value = _take(stored, name, key, weight, cut)
            if stays_on_host and value.numel() > 1:
                on_host.setdefault(weight, {})[key] = value
            else:
                values[key] = value
        if values:
            state[numbers[id(weight)]] = values
    groups = []
    own = optimizer.state_dict()["param_groups"]
    for number, current in enumerate(own):
        saved = rest["param_groups"][min(number, len(rest["param_groups"]) - 1)]
        if (
            not current.keys() - {"params", *OF_THE_RUN} <= saved.keys()
        ):  # some add a count of steps as they go
            raise CheckpointError(
                f"the saved optimizer is no {type(optimizer).__name__}: it has the settings"
                f" {', '.join(sorted(saved))}",
                fix="resume with the optimizer that the run was started with",
            )
        # JSON has no tuples: betas come back as a list
        groups.append(
            {
                **{
                    key: tuple(value) if isinstance(current.get(key), tuple) else value
                    for key, value in saved.items()
                    if key not in OF_THE_RUN
                },
                "weight_decay": 0.0,
                **{key: current[key] for key in OF_THE_RUN if key in current},
                "params": current["params"],
            }
        )
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for weight, large in on_host.items():
            optimizer.state[weight].update(large)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the saved optimizer does not fit {type(optimizer).__name__}: {error}",
            fix="resume with the optimizer and model that the run was started with",
        ) from error


def _numbers(optimizer: Optimizer) -> dict[int, int]:
    everything = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {id(weight): number for number, weight in enumerate(everything)}


def _take(stored: StoredTensors, name: str, key: str, weight: Tensor, cut: Cut) -> Tensor:
    parts, shape = list(cut(name, weight, f"/{key}")), stored.shape(f"{name}/{key}")
    whole = parts[0].place.shape if parts else ()
    local = tuple(weight.shape)
    if len(shape) == 2 and shape != whole and shape[:1] == whole[:1] and local != whole:
        block = math.prod(whole[1:]) // shape[1]
        if weight[0].numel() % block:
            raise CheckpointError(
                f"{name}/{key} is stored for blocks of {block} numbers, and this layout cuts rows"
                f" of {weight[0].numel()}",
                fix="resume with a tp that cuts rows into whole blocks, such as that of the run",
            )
        local = (len(weight), weight[0].numel() // block)
    elif shape != whole:
        return stored[f"{name}/{key}"]
    tensor = stored.new(f"{name}/{key}", local)
    for part in cut(name, tensor, f"/{key}"):
        stored.fill(part)
    if tensor.shape == weight.shape and tensor.stride() != weight.stride():
        # channels-last, as the optimizer made it: in another order an update rounds otherwise
        tensor = torch.empty_like(weight, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return tensor
