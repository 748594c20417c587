"""Which tensors can be weights of ours: plain, floating, finite."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepseek.errors import CheckpointError, ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TAKEN = frozenset([torch.float64, *DTYPES.values()])
# How bitsandbytes, GPTQ, AWQ, compressed-tensors and torchao call what comes with a quantised one.
_QUANTISED_ENDS = (
    ".SCB", ".absmax", ".quant_map", ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale",
    ".weight_packed", ".weight_scale_inv", ".quant_state.bitsandbytes__nf4", ".weight_format",
)  # fmt: skip


def check_tensors(state: Mapping[str, object], source: object) -> dict[str, Tensor]:
    """Return a state dict of plain tensors on the CPU.

    Raises:
        CheckpointError: something in it is not a tensor, has no values, or is quantised.
    """
    if not state:
        raise CheckpointError(f"{source} holds no tensor", fix="save model.state_dict()")
    checked = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            if isinstance(name, str) and "_packed_params" in name:  # torch's quantised modules
                raise CheckpointError(
                    f"{source}: {name} is a {kind}, so it is quantised",
                    fix="give the weights of the model before it was quantised",
                )
            raise CheckpointError(
                f"{source} is no state dict: under {name!r} is a {kind}, not a tensor",
                fix="give model.state_dict(), or the module itself",
            )
        if type(tensor) not in (Tensor, nn.Parameter):
            raise CheckpointError(
                f"{source}: {name} is a {type(tensor).__name__}, not a plain tensor",
                fix="gather or dequantise the model before its weights are taken",
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            what = "has no values (meta device)" if tensor.is_meta else "is sparse"
            raise CheckpointError(f"{source}: {name} {what}", fix="load the weights, as dense ones")
        if tensor.is_quantized or name.endswith(_QUANTISED_ENDS):
            raise _quantised(source, name, tensor)
        checked[name] = tensor.detach().cpu()
    return checked


def cast_weights(
    state: Mapping[str, Tensor], dtype: str, source: object
) -> tuple[dict[str, Tensor], list[str]]:
    """Return copies of the weights in one dtype, and notes on those that were cast.

    Args:
        state: name -> tensor; integers stay as they are.
        dtype: a name of `DTYPES`, or "keep".
        source: where they come from, for messages.

    Raises:
        ConfigError: `dtype` is unknown.
        CheckpointError: a weight is of a dtype that cannot be computed with, or not finite.
    """
    if dtype != "keep" and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not known", fix=f"use one of {[*DTYPES, 'keep']}")
    made = {name: _cast(name, tensor, dtype, source) for name, tensor in state.items()}
    counts = Counter(state[name].dtype for name in state if made[name].dtype != state[name].dtype)
    short = {old: str(old).removeprefix("torch.") for old in counts}
    return made, [f"{n} tensors cast from {short[old]} to {dtype}" for old, n in counts.items()]


def _cast(name: str, tensor: Tensor, dtype: str, source: object) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return tensor.clone()
    if tensor.dtype not in _TAKEN:
        raise _quantised(source, name, tensor)
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"{source}: {name} has {int((~tensor.isfinite()).sum())} values that are not finite",
            fix="take weights from before the training diverged, or copy the file again",
        )
    return tensor.to(DTYPES.get(dtype, tensor.dtype), copy=True)


def _quantised(source: object, name: str, tensor: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{source}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}, so it is quantised"
        " or no weight",
        fix="give the weights of the model before it was quantised, in a floating dtype",
    )
