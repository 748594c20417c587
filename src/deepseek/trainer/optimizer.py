"""Optimizer recipes: named now, bound to the parameters of a model later.

Norms, biases and other vectors get no weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101,
and every recipe since). torch's own fused kernels are used where they exist for the parameters'
device.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from deepseek.errors import ConfigError
from deepseek.memory.low_precision import LowPrecisionAdamW, adam_state_bytes
from deepseek.registry import Registry
from deepseek.trainer.layer_pace import LayerPace

ParamGroups = list[dict]
FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


@dataclass(frozen=True)
class Algorithm:
    """How an optimizer is made, and the settings an expert would start from.

    `build` takes parameter groups and keyword arguments; `options` are the names it knows;
    `fused_on` the types of devices that torch has a fused kernel for.
    `state_bytes` are those of one weight's state.
    """

    build: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    weight_decay: float
    options: frozenset[str]
    fused_on: frozenset[str] = frozenset()
    state_bytes: Callable[[Tensor], int] = lambda weight: weight.nbytes


OPTIMIZERS: Registry[Algorithm] = Registry("optimizer")


def _add_torch(
    name: str,
    cls: type,
    lr: float,
    decay: float,
    options: str,
    fused_on: frozenset[str] = frozenset(),
    states: int = 1,
) -> None:
    algorithm = Algorithm(
        cls, lr, decay, frozenset(options.split()), fused_on, partial(_copies_bytes, states)
    )
    OPTIMIZERS.register(name)(algorithm)


def _copies_bytes(count: int, weight: Tensor) -> int:
    return count * weight.nbytes


def _factored_bytes(weight: Tensor) -> int:
    """Adafactor keeps a mean for each row and each column."""
    if weight.ndim < 2:
        return weight.nbytes
    rest = weight.numel() // (weight.shape[-1] * weight.shape[-2])
    return rest * (weight.shape[-1] + weight.shape[-2]) * weight.element_size()


def _add_timm(name: str, lr: float, decay: float, options: str, states: int = 1) -> None:
    def build(groups: ParamGroups, **settings) -> torch.optim.Optimizer:
        import timm.optim  # seconds to import

        return timm.optim.create_optimizer_v2(  # pyright: ignore[reportPrivateImportUsage]
            groups, opt=name, **settings
        )

    kept = partial(_copies_bytes, states)
    algorithm = Algorithm(build, lr, decay, frozenset(options.split()), state_bytes=kept)
    OPTIMIZERS.register(name)(algorithm)


_add_torch("sgd", torch.optim.SGD, 0.05, 5e-4, "momentum nesterov", fused_on=FUSED_DEVICES)
_add_torch("adam", torch.optim.Adam, 1e-3, 0.0, "betas eps", fused_on=FUSED_DEVICES, states=2)
_add_torch("adamw", torch.optim.AdamW, 1e-3, 0.05, "betas eps", fused_on=FUSED_DEVICES, states=2)
_add_torch("nadamw", torch.optim.NAdam, 1e-3, 0.05, "betas eps", states=2)
# torch 2.11 has its fused kernel for a CPU alone
_add_torch("adagrad", torch.optim.Adagrad, 1e-2, 0.0, "eps", fused_on=frozenset({"cpu"}))
_add_torch("rmsprop", torch.optim.RMSprop, 1e-3, 0.0, "momentum eps")
OPTIMIZERS.register("adafactor")(  # Shazeer & Stern 2018, arXiv 1804.04235
    Algorithm(torch.optim.Adafactor, 1e-2, 0.0, frozenset(), state_bytes=_factored_bytes)
)
OPTIMIZERS.register("adamw8bit")(  # Dettmers et al. 2021, arXiv 2110.02861
    Algorithm(
        LowPrecisionAdamW, 1e-3, 0.05, frozenset({"betas", "eps"}),
        state_bytes=partial(adam_state_bytes, state_bits=8),
    )
)  # fmt: skip
_add_timm("lamb", 5e-3, 0.02, "betas eps", states=2)  # You et al. 2020, arXiv 1904.00962
_add_timm("lion", 1e-4, 0.5, "betas")  # Chen et al. 2023, arXiv 2302.06675
_add_timm("muon", 2e-2, 0.05, "momentum nesterov eps")  # Jordan 2024; AdamW for vectors
_add_timm("adan", 1e-3, 0.02, "eps", states=4)  # Xie et al. 2022, arXiv 2208.06677


class Optimizer:
    """A recipe for an optimizer.

    Args:
        algorithm: a name of `OPTIMIZERS`: sgd, adam, adamw, lamb, lion, muon, ...
        learning_rate: peak learning rate; `"auto"` takes the algorithm's usual one.
        weight_decay: for weights of two or more dimensions; `"auto"` likewise.
        momentum, nesterov, betas, eps: where the algorithm has them; setting one that it has not
            is an error.

    Raises:
        ConfigError: unknown algorithm, a number out of range, an option that the algorithm does
            not have.

    Example:
        >>> from torch import Tensor, nn
        >>> bound = Optimizer(algorithm="adam", learning_rate=0.001).bind(nn.Linear(2, 2))
        >>> type(bound).__name__, len(bound.param_groups)
        ('Adam', 2)
    """

    def __init__(
        self,
        algorithm: str = "adamw",
        learning_rate: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        *,
        momentum: float | None = None,
        nesterov: bool | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
    ) -> None:
        entry = OPTIMIZERS.get(algorithm.lower())
        self.algorithm = algorithm.lower()
        self.learning_rate = entry.learning_rate if learning_rate == "auto" else learning_rate
        self.weight_decay = entry.weight_decay if weight_decay == "auto" else weight_decay
        given = {"momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
        self.options = {name: value for name, value in given.items() if value is not None}
        self._check(entry)

    def _check(self, entry: Algorithm) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(
                f"learning_rate={self.learning_rate} is not a positive number",
                fix='give a number above 0, or "auto"',
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"weight_decay={self.weight_decay} is below 0", fix="give 0 or more")
        foreign = sorted(self.options.keys() - entry.options)
        if foreign:
            known = ", ".join(sorted(entry.options)) or "none"
            raise ConfigError(
                f"optimizer {self.algorithm!r} has no {', '.join(foreign)}",
                fix=f"remove it; {self.algorithm} takes: {known}",
            )

    def bind(
        self,
        module: nn.Module,
        no_weight_decay: frozenset[str] = frozenset(),
        *,
        seed: int = 0,
        rounds: bool = False,
        pace: LayerPace | None = None,
    ) -> torch.optim.Optimizer:
        """Return the torch optimizer over the parameters of `module` that want a gradient.

        Args:
            module: the model.
            no_weight_decay: names of further parameters without decay (position tables, ...).
            seed: of what an optimizer draws.
            rounds: round weights in bf16 stochastically; for adamw and adamw8bit.
            pace: how fast the layers learn; `None`: all alike.

        Raises:
            ConfigError: the module has nothing to train.
        """
        check_trainable(module)
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        return self.bind_weights(trained, no_weight_decay, seed=seed, rounds=rounds, pace=pace)

    def bind_weights(
        self,
        weights: Mapping[str, Tensor],
        no_weight_decay: frozenset[str] = frozenset(),
        *,
        seed: int = 0,
        rounds: bool = False,
        pace: LayerPace | None = None,
    ) -> torch.optim.Optimizer:
        """Return the torch optimizer over weights, or this rank's parts of them, by name."""
        entry = OPTIMIZERS.get(self.algorithm)
        groups = group_parameters(weights, self.weight_decay, no_weight_decay, pace)
        settings: dict = {"lr": self.learning_rate, **self.options}
        if rounds or entry.build is LowPrecisionAdamW:
            names = {weight: name for name, weight in weights.items()}
            bits = 8 if self.algorithm == "adamw8bit" else 32
            return LowPrecisionAdamW(groups, names, **settings, state_bits=bits, seed=seed)
        parameters = [parameter for group in groups for parameter in group["params"]]
        devices = {parameter.device.type for parameter in parameters}
        is_complex = any(parameter.is_complex() for parameter in parameters)  # no fused kernel
        if len(devices) == 1 and devices <= entry.fused_on and not is_complex:
            settings["fused"] = True
        if self.algorithm == "nadamw":
            settings["decoupled_weight_decay"] = True
        return entry.build(groups, **settings)

    def state_bytes(self, weights: Iterable[Tensor], *, rounds: bool = False) -> int:
        """Return the bytes of the state that the optimizer will keep for weights.

        Args:
            weights: those that are trained.
            rounds: as for `bind`; their moments are fp32.
        """
        of_one = OPTIMIZERS.get(self.algorithm).state_bytes
        if rounds and self.algorithm != "adamw8bit":
            of_one = partial(adam_state_bytes, state_bits=32)
        return sum(of_one(weight) for weight in weights)

    def describe(self) -> Mapping[str, object]:
        """Return every number of the recipe, for the run's config and the console."""
        return {
            "algorithm": self.algorithm,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            **self.options,
        }

    def __repr__(self) -> str:
        return "Optimizer(" + ", ".join(f"{k}={v!r}" for k, v in self.describe().items()) + ")"


def check_trainable(module: nn.Module) -> None:
    """Refuse a model that nothing of would be trained.

    Raises:
        ConfigError: no parameter requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"{type(module).__name__} has no parameter that requires a gradient",
            fix="unfreeze a part of the model (requires_grad_(True)), or only evaluate it",
        )


def group_parameters(
    weights: Mapping[str, Tensor],
    weight_decay: float,
    no_weight_decay: frozenset[str],
    pace: LayerPace | None = None,
) -> ParamGroups:
    """Split weights into one group with and one without weight decay, for each pace."""
    found: dict[tuple[int, bool], list[Tensor]] = {}
    for name, weight in weights.items():
        is_plain = weight.ndim <= 1 or name in no_weight_decay
        away = 0 if pace is None else pace.distances[name]
        found.setdefault((away, is_plain), []).append(weight)
    return [
        {
            "params": found[away, is_plain],
            "weight_decay": 0.0 if is_plain else weight_decay,
            **({} if pace is None else pace.settings(away)),
        }
        for away, is_plain in sorted(found)  # the head first: its rate is that of the schedule
    ]
