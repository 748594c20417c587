"""A torch optimizer's state as named tensors and JSON, and back: no pickle."""

from torch import Tensor
from torch.optim import Optimizer

from deepseek.errors import CheckpointError


def split_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict]:
    """Return (tensors by `"parameter/name"`, JSON-able rest)."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value.detach().contiguous()
            else:
                scalars.setdefault(str(parameter), {})[name] = value
    groups = [
        {name: _plain(value) for name, value in group.items()} for group in state["param_groups"]
    ]
    return tensors, {"scalars": scalars, "param_groups": groups}


def _plain(value):
    return float(value) if isinstance(value, Tensor) else value


def join_state(optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict) -> None:
    """Load what `split_state` returned into `optimizer`.

    Raises:
        CheckpointError: the optimizer has other parameter groups than the saved one.
    """
    state: dict[int, dict] = {}
    for key, tensor in tensors.items():
        parameter, _, name = key.partition("/")
        state.setdefault(int(parameter), {})[name] = tensor
    for parameter, values in rest["scalars"].items():
        state.setdefault(int(parameter), {}).update(values)
    groups = []
    for saved, current in zip(rest["param_groups"], optimizer.param_groups, strict=False):
        # JSON has no tuples: betas come back as a list
        groups.append(
            {
                name: tuple(value) if isinstance(current.get(name), tuple) else value
                for name, value in saved.items()
            }
        )
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the saved optimizer does not fit {type(optimizer).__name__}: {error}",
            fix="resume with the optimizer and model that the run was started with",
        ) from error
