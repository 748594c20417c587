"""A torch optimizer's state as parts of named tensors and JSON, and back: no pickle.

A tensor is called `WEIGHT/KEY`, such as `blocks.0.fc1.weight/exp_avg`: by the name of its weight,
not by a number, for a rank holds only some of the weights.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from deepseek.checkpoint.stored_tensors import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.tensor_part import TensorPart

# (name of a weight, something of its shape, what is added to the name) -> parts of a whole
Cut = Callable[[str, Tensor, str], Iterable[TensorPart]]


def split_state(
    optimizer: Optimizer, weights: Mapping[str, Tensor], cut: Cut
) -> tuple[list[TensorPart], dict]:
    """Return (the tensors, JSON-able rest).

    Args:
        optimizer: whose state is saved.
        weights: what it updates, by name.
        cut: says where a tensor of the shape of a weight lies in the whole.
    """
    parts: list[TensorPart] = []
    scalars: dict[str, dict] = {}
    for name, weight in weights.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if not isinstance(value, Tensor):
                scalars.setdefault(name, {})[key] = value
            elif value.shape == weight.shape:
                parts += cut(name, value.detach().contiguous(), f"/{key}")
            else:  # a count: the same on every rank that has the weight
                is_written = any(part.is_written for part in cut(name, weight, ""))
                parts.append(TensorPart.whole(f"{name}/{key}", value.detach(), is_written))
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return parts, {"scalars": scalars, "param_groups": groups}


def _plain(value):
    return float(value) if isinstance(value, Tensor) else value


def join_state(
    optimizer: Optimizer,
    weights: Mapping[str, Tensor],
    cut: Cut,
    stored: StoredTensors,
    rest: dict,
) -> None:
    """Load what `split_state` returned, on this or another layout, into `optimizer`.

    Raises:
        CheckpointError: the optimizer has other parameter groups than the saved one, or lacks a
            weight.
    """
    by_weight: dict[str, list[str]] = {}
    for name in stored:
        weight, _, key = name.rpartition("/")
        by_weight.setdefault(weight, []).append(key)
    state: dict[int, dict] = {}
    numbers = _numbers(optimizer)
    for name, weight in weights.items():
        values = dict(rest["scalars"].get(name, {}))
        for key in by_weight.get(name, []):
            values[key] = _take(stored, name, key, weight, cut)
        if values:
            state[numbers[id(weight)]] = values
    groups = []
    own = optimizer.state_dict()["param_groups"]
    for number, current in enumerate(own):
        saved = rest["param_groups"][min(number, len(rest["param_groups"]) - 1)]
        if not current.keys() - {"params"} <= saved.keys():  # some add a count of steps as they go
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
                    if key != "weight_decay"
                },
                "weight_decay": current.get("weight_decay", 0.0),
                "params": current["params"],
            }
        )
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the saved optimizer does not fit {type(optimizer).__name__}: {error}",
            fix="resume with the optimizer and model that the run was started with",
        ) from error


def _numbers(optimizer: Optimizer) -> dict[int, int]:
    everything = [weight for group in optimizer.param_groups for weight in group["params"]]
    return {id(weight): number for number, weight in enumerate(everything)}


def _take(stored: StoredTensors, name: str, key: str, weight: Tensor, cut: Cut) -> Tensor:
    parts = list(cut(name, weight, f"/{key}"))
    if not parts or stored.shape(f"{name}/{key}") != parts[0].place.shape:
        return stored[f"{name}/{key}"]
    tensor = stored.new(f"{name}/{key}", weight.shape)
    for part in cut(name, tensor, f"/{key}"):
        stored.fill(part)
    return tensor
