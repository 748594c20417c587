"""AdamW with less memory per weight: moments in 8 bits, weights in bf16 with stochastic rounding.

```
                          weight   gradient   moments    bytes per weight
adamw                     fp32     fp32       fp32       4 + 4 + 8
adamw8bit                 fp32     fp32       8 bits     4 + 4 + 2
adamw, bf16 weights       bf16     bf16       fp32       2 + 2 + 8
adamw8bit, bf16 weights   bf16     bf16       8 bits     2 + 2 + 2
```
Each block of moments is scaled by its largest value and stored as numbers of 8 bits that lie closer
together near zero (Dettmers et al. 2021, arXiv 2110.02861, section 2.1 and appendix F). A block is
a part of a row, so that ranks that divide rows divide blocks, too; vectors stay fp32. The update is
computed in fp32.

bf16 has 8 bits for a number: most updates are smaller than the distance to the next one, and
rounding to the nearest would undo them. Rounded up as often as the rest asks for, they count on
average (Zamirai et al. 2020, arXiv 2010.06192). The random bits follow from the seed, the name of
the weight and the count of updates: copies of a weight on several ranks stay equal, and no
generator has to be saved.
"""

import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from deepseek.errors import ConfigError
from deepseek.registry import import_extra

MAX_BLOCK = 256
MIN_BLOCK = 64
LEAST_CODES = {"exp_avg": 0, "exp_avg_sq": 1}
"""A second moment is never rounded to zero, which it is divided by: where a small gradient is
followed by none, the step would be without bound (Li et al. 2023, arXiv 2309.01507)."""
MAX_NUMEL = 1 << 22
"""Numbers that are updated at a time: what an update makes for a moment stays small."""


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with little state.

    Args:
        groups: of weights; those in bf16 are rounded stochastically.
        names: of the weights, the same on every rank that holds a copy.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: per step and unit of learning rate.
        state_bits: of a moment.
        seed: of the rounding.

    Raises:
        MissingExtraError: torchao is not installed.
    """

    def __init__(
        self,
        groups: list[dict],
        names: Mapping[Tensor, str],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        state_bits: Literal[8, 32] = 8,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self._state_bits = state_bits
        self._seed = seed
        self._names = dict(names)
        _quantizers()  # an extra that is missing is said before the first step

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Update each weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # a graph for each kind of weight, whatever their number; as torchao does
        with self._own_randomness(), torch._dynamo.utils.disable_cache_limit(), _needs_compiler():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._update(weight, weight.grad, group)
        return loss

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Leave the generators of the run as they are, if weights are rounded at random."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        if not any(weight.dtype is torch.bfloat16 for weight in weights):
            yield
            return
        devices = {weight.device.index for weight in weights if weight.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            yield

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state.update(self._packed(name, torch.zeros(weight.shape, device=weight.device)))
        state["step"] += 1
        count = int(state["step"])  # on the host
        rounds = weight.dtype is torch.bfloat16
        if rounds:
            text = f"{self._seed} {count} {self._names[weight]}"
            torch.manual_seed(zlib.crc32(text.encode()))
        beta1, beta2 = group["betas"]
        rate = group["lr"] / (1 - beta1**count)
        shrinks = 1 - group["lr"] * group["weight_decay"]
        factors = torch.tensor([rate, shrinks, math.sqrt(1 - beta2**count)])
        factors = factors.to(weight.device, non_blocking=True)
        contiguous = weight.detach().contiguous()
        values = [contiguous, grad.contiguous()]
        keys = sorted(key for key in state if key != "step")
        is_packed = "exp_avg_codes" in state
        shape = (state["exp_avg_scale"].numel(), -1) if is_packed else (-1,)
        for key in keys:  # what was put back may lie as a weight in channels-last does
            state[key] = state[key].contiguous()
        values += [state[key].view(shape) for key in keys]
        values[:2] = [value.view(shape) for value in values[:2]]
        compute = _compiled(is_packed, weight.device)
        limit = MAX_NUMEL // (values[0].shape[1] if is_packed else 1)
        for parts in zip(*(value.split(limit) for value in values), strict=True):
            compute(*parts, factors, beta1, beta2, group["eps"], rounds)
        if not weight.is_contiguous():
            weight.copy_(contiguous)

    def _packed(self, name: str, moment: Tensor) -> dict[str, Tensor]:
        """Return a moment as it is kept: codes and a scale for each block, or as it is."""
        block = block_size(moment.shape) if self._state_bits == 8 else None
        if block is None:
            return {name: moment}
        tables, quantize, _ = _quantizers()
        table = tables[name].to(moment.device)
        values = moment.contiguous().view(-1, block)
        codes, scale = _pack(values, table, quantize, LEAST_CODES[name])
        return {
            f"{name}_codes": codes.view(moment.shape),
            f"{name}_scale": scale.view(len(moment), -1),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state back; moments of a plain AdamW are packed.

        torch would cast codes to the dtype of the weights.
        """
        known = {"params", *self.defaults}
        groups = [
            {key: value for key, value in group.items() if key in known}
            for group in state_dict["param_groups"]
        ]
        super().load_state_dict({"state": {}, "param_groups": groups})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, saved in state_dict["state"].items():
            state = self.state[weights[number]]
            for key, value in saved.items():
                if key == "step":
                    state[key] = torch.as_tensor(value, dtype=torch.float32, device="cpu")
                    continue
                value = value.to(weights[number].device)
                is_whole = key in ("exp_avg", "exp_avg_sq")
                state.update(self._packed(key, value.float()) if is_whole else {key: value})


def block_size(shape: torch.Size | tuple[int, ...]) -> int | None:
    """Return how many moments of a weight share a scale; `None` where they stay fp32.

    It depends on the length of a row alone, which ranks that divide rows have in common.
    """
    if len(shape) < 2:
        return None
    columns = math.prod(shape[1:])
    block = next((size for size in range(MAX_BLOCK, 0, -1) if columns % size == 0), 0)
    return block if block >= MIN_BLOCK else None


def adam_state_bytes(weight: Tensor, state_bits: Literal[8, 32]) -> int:
    """Return the bytes of both moments of a weight."""
    block = block_size(weight.shape) if state_bits == 8 else None
    return (
        weight.numel() * 8 if block is None else 2 * (weight.numel() + weight.numel() // block * 4)
    )


# -- arithmetic ------------------------------------------------------------------------------


def _step_packed(
    weight: Tensor,
    grad: Tensor,
    codes: Tensor,
    scale: Tensor,
    sq_codes: Tensor,
    sq_scale: Tensor,
    factors: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    rounds: bool,
    *,
    tables: dict[str, Tensor],
    quantize: Callable[[Tensor, Tensor], Tensor],
    round_up: Callable[[Tensor], Tensor],
) -> None:
    """Update (N, BLOCK) weights, their codes and their scales (N, 1), in place."""
    table, sq_table = tables["exp_avg"], tables["exp_avg_sq"]
    moments = table[codes.int()] * scale, sq_table[sq_codes.int()] * sq_scale
    new, moment, sq_moment = _adam(weight, grad, *moments, factors, beta1, beta2, eps)
    for name, kept, each, values, its_scale in (
        ("exp_avg", codes, table, moment, scale),
        ("exp_avg_sq", sq_codes, sq_table, sq_moment, sq_scale),
    ):
        packed, new_scale = _pack(values, each, quantize, LEAST_CODES[name])
        kept.copy_(packed)
        its_scale.copy_(new_scale)
    weight.copy_(round_up(new) if rounds else new)


def _step_plain(
    weight: Tensor,
    grad: Tensor,
    moment: Tensor,
    sq_moment: Tensor,
    factors: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    rounds: bool,
    *,
    round_up: Callable[[Tensor], Tensor],
) -> None:
    """Update (N,) weights and their moments in fp32, in place."""
    new, first, second = _adam(weight, grad, moment, sq_moment, factors, beta1, beta2, eps)
    moment.copy_(first)
    sq_moment.copy_(second)
    weight.copy_(round_up(new) if rounds else new)


def _adam(
    weight: Tensor,
    grad: Tensor,
    moment: Tensor,
    sq_moment: Tensor,
    factors: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rate, shrinks, root = factors.unbind()
    grad = grad.float()
    moment = moment.lerp(grad, 1 - beta1)
    sq_moment = sq_moment.lerp(grad.square(), 1 - beta2)
    new = weight.float() * shrinks - rate * moment / (sq_moment.sqrt() / root + eps)
    return new, moment, sq_moment


def _pack(
    values: Tensor, table: Tensor, quantize: Callable[[Tensor, Tensor], Tensor], least: int
) -> tuple[Tensor, Tensor]:
    """Return codes of (N, BLOCK) values and the scale (N, 1) of each block."""
    scale = values.abs().amax(-1, keepdim=True).clip(1e-12)
    return quantize(values / scale, table).clamp(min=least), scale


@contextmanager
def _needs_compiler() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "compiler" in str(error).lower() and shutil.which("g++") is None:
            raise ConfigError(
                f"adamw8bit and param_dtype=bf16 need a C++ compiler, and there is none: {error}",
                fix="install g++ (apt-get install g++), or use optimizer=adamw with"
                " param_dtype=fp32",
            ) from error
        raise


@cache
def _quantizers() -> tuple[dict[str, Tensor], Callable, Callable]:
    """Return torchao's tables of 8-bit numbers, its rounding to them and to bf16."""
    own = import_extra("torchao.optim.quant_utils", "memory")
    tables = {
        "exp_avg": torch.tensor(own.create_dynamic_map(signed=True)),
        "exp_avg_sq": torch.tensor(own.create_dynamic_map(signed=False)),
    }
    return tables, own.quantize_8bit_with_qmap, own._fp32_to_bf16_sr


@cache
def _compiled(is_packed: bool, device: torch.device) -> Callable:
    """Return an update as one kernel: operator by operator it takes seven times as long."""
    tables, quantize, round_up = _quantizers()
    if is_packed:
        tables = {name: table.to(device) for name, table in tables.items()}
        update = partial(_step_packed, tables=tables, quantize=quantize, round_up=round_up)
    else:
        update = partial(_step_plain, round_up=round_up)
    return torch.compile(update, fullgraph=True, dynamic=True)
