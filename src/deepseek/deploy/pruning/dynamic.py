"""Sparsity that grows during training, and weights that may come back.

The share of zeros follows a cubic schedule (Zhu & Gupta 2017, arXiv 1710.01878, equation 1):
`s_t = s (1 - (1 - p)^3)`, p the progress from `begin` to `end`. Every few steps the mask is chosen
anew: the smallest weights go, and of those that are gone the ones with the largest running mean of
their gradient come back, at zero (RigL, Evci et al. 2020, arXiv 1911.11134; with the optimizer's
first moment in the place of a gradient of one batch as in sparse momentum, Dettmers & Zettlemoyer
2019, arXiv 1907.04840). The share that comes back falls to nothing as a cosine.

Zeros make a model file smaller once it is compressed, and nothing faster: no kernel of today gains
from zeros without a pattern.

Shapes: N weights of all layers together.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepseek.deploy.pruning.masks import WeightMasks
from deepseek.errors import ConfigError
from deepseek.trainer import Callback

if TYPE_CHECKING:
    from deepseek.trainer.step_values import StepResult
    from deepseek.trainer.trainer import Trainer

MIN_KEPT = 0.02
"""Share of a layer's weights that stays in any case: a layer of zeros lets nothing through."""
NUM_UPDATES = 100


class DynamicPruning(Callback):
    """Zeroes weights while a model trains; an exception to the rule that callbacks only observe.

    Args:
        sparsity: share of zeros at the end, in (0, 1).
        begin, end: of the schedule, as shares of the run's steps; after `end` the mask stays.
        every: steps between two choices of the mask; `None`: a hundred choices in all.
        regrow: share of what is kept that may come back at the first choice.
        skip: names of modules, or beginnings of them, that are left alone; the head by default.

    Raises:
        ConfigError: a share is out of its range.

    Example:
        ```python
        pruning = DynamicPruning(sparsity=0.8)
        Trainer(model, data, epochs=10, callbacks=[pruning]).fit()
        print(pruning.describe())
        ```
    """

    def __init__(
        self,
        sparsity: float,
        *,
        begin: float = 0.0,
        end: float = 0.7,
        every: int | None = None,
        regrow: float = 0.2,
        skip: tuple[str, ...] | None = None,
    ) -> None:
        for name, value, low in (("sparsity", sparsity, 0.0), ("regrow", regrow, -1e-9)):
            if not low < value < 1:
                raise ConfigError(f"{name}={value} is not a share below 1", fix=f"change {name}")
        if not 0 <= begin < end <= 1:
            raise ConfigError(
                f"begin={begin}, end={end}: a schedule runs from 0 <= begin to begin < end <= 1",
                fix="give shares of the run, such as begin=0.0, end=0.7",
            )
        if every is not None and every < 1:
            raise ConfigError(f"every={every} steps is below 1", fix="give 1 or more")
        self.sparsity, self.begin, self.end = sparsity, begin, end
        self.every, self.regrow, self.skip = every, regrow, skip
        self._kept = WeightMasks()
        self._is_told = False

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Find the weights, and the mask of a run that goes on."""
        if trainer.assembly.length.max_steps is None:
            raise ConfigError(
                f"time_budget={trainer.config.time_budget} alone ends the run, and dynamic pruning"
                " needs the number of its steps",
                fix="set epochs or max_steps too",
            )
        skip = trainer.model.hints.head[-1:] if self.skip is None else self.skip
        self._kept.find(trainer, skip, keeps_all=True)

    def on_step_end(self, trainer: "Trainer", result: "StepResult") -> None:
        """Choose the mask anew where that is due, and apply it."""
        if result.bad is not None:
            return
        assembly = trainer.assembly
        num_steps = assembly.length.max_steps or 0
        first, last = round(self.begin * num_steps), max(1, round(self.end * num_steps))
        every = self.every or max(1, (last - first) // NUM_UPDATES)
        is_due = (trainer.step - first) % every == 0 or trainer.step == last
        if first < trainer.step <= last and is_due:
            progress = (trainer.step - first) / (last - first)
            self._choose(progress, assembly.step.optimizer)
            self._tell(trainer)
            trainer.recorder.log(
                {"kind": "pruning", "step": trainer.step, "sparsity": self.measured()}
            )
        self._kept.apply(trainer)

    def _tell(self, trainer: "Trainer") -> None:
        """Say once that nothing can come back, where the optimizer does not know what would."""
        optimizer = trainer.assembly.step.optimizer
        knows = all(
            _moment(weight, optimizer) is not None for weight in self._kept.weights.values()
        )
        if self.regrow > 0 and not knows and not self._is_told:
            self._is_told = True
            trainer.warn(
                f"regrow={self.regrow:g} does nothing: {trainer.config.optimizer} keeps no running"
                " mean of gradients, by which weights come back; set momentum, or choose adamw"
            )

    @torch.no_grad()
    def _choose(self, progress: float, optimizer: torch.optim.Optimizer) -> None:
        masks, weights = self._kept.masks, self._kept.weights
        target = self.sparsity * (1 - (1 - progress) ** 3)
        total = sum(weight.numel() for weight in weights.values())
        num_kept = total - round(target * total)
        share = self.regrow * (1 + math.cos(math.pi * progress)) / 2 if progress < 1 else 0.0
        moments = [_moment(weight, optimizer) for weight in weights.values()]
        is_known = all(moment is not None for moment in moments)
        alive = torch.cat([mask.flatten() for mask in masks.values()])
        num_gone = int((~alive).sum())
        num_grown = min(num_gone, int(share * num_kept)) if is_known else 0
        size = torch.cat([weight.abs().flatten() for weight in weights.values()]).float()
        size[~alive] = -1.0
        num_survivors = min(num_kept - num_grown, int(alive.sum()))
        chosen = torch.zeros_like(alive)
        chosen[size.topk(num_survivors).indices] = True
        if num_grown:
            pull = torch.cat([m.abs().flatten() for m in moments if m is not None]).float()
            pull[alive] = -1.0
            chosen[pull.topk(num_grown).indices] = True
        parts = chosen.split([mask.numel() for mask in masks.values()])
        for (name, mask), part in zip(masks.items(), parts, strict=True):
            # in place: a mask lies in memory as its weight does
            mask.copy_(_keep_some(part.view(mask.shape), weights[name]))

    def measured(self) -> float:
        """Return the share of zeros in the weights that are pruned."""
        return self._kept.measured()

    def describe(self) -> str:
        """Return the share of zeros, in all and layer by layer."""
        return self._kept.describe()

    def state_dict(self) -> dict:
        """Return what the weights do not tell: which of their zeros are there to grow."""
        return self._kept.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take it back."""
        self._kept.load_state_dict(state)


def _keep_some(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask that leaves a layer the least it needs."""
    least = max(1, math.ceil(MIN_KEPT * mask.numel()))
    if int(mask.sum()) >= least:
        return mask
    kept = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    kept[weight.abs().flatten().topk(least).indices] = True
    return kept.view(mask.shape) | mask


def _moment(weight: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return the running mean of a weight's gradient, if the optimizer keeps one."""
    state = optimizer.state.get(weight, {})
    return next((state[key] for key in ("exp_avg", "momentum_buffer") if key in state), None)
