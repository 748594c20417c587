"""One task is learnt as well as may be, while the others stay below a loss each.

Papers: Bertsekas 1982, "Constrained optimization and Lagrange multiplier methods", chapter 2;
Cotter et al. 2019, "Optimization with non-differentiable constraints" (arXiv 1809.04198).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepseek.errors import ConfigError
from deepseek.trainer.weighting import Seen, Weighting


class Constraint(Weighting):
    """A Lagrangian: `loss_main + sum_i m_i (loss_i - limit_i)`, with `m_i >= 0`.

    After each step `m_i` becomes `max(0, m_i + lr (loss_i - limit_i))`: it rises while the limit is
    broken. Weights are divided by their sum, so that the step stays as long.

    Args:
        limits: task -> the highest loss it may have; all but one, which is the main task.
        lr: of the multipliers.

    Raises:
        ConfigError: limits leave no task, or more than one, without; or a number is not above 0.
    """

    def __init__(self, limits: Mapping[str, float], lr: float = 0.05) -> None:
        for name, value in {**limits, "lr": lr}.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name}={value} is not above 0", fix="give a finite number")
        self._limits, self._lr = dict(limits), lr

    def _begin(self, task_names: Sequence[str]) -> None:
        left = [name for name in task_names if name not in self._limits]
        if len(left) != 1 or not set(self._limits) <= set(task_names):
            raise ConfigError(
                f"limits of {sorted(self._limits)} for the tasks {list(task_names)}",
                fix="give a limit to each task but one",
            )
        self._limited = np.array([name in self._limits for name in task_names])
        self._bounds = np.array([self._limits.get(name, 0.0) for name in task_names])
        self.multipliers = np.zeros(len(task_names))

    def weights(self, seen: Seen | None) -> np.ndarray:
        """Return what each loss is multiplied by, (N,)."""
        del seen
        weights = np.where(self._limited, self.multipliers, 1.0)
        return weights / weights.sum()

    def learn(self, seen: Seen, lr: float) -> None:
        """Raise the multipliers of tasks above their limit, and lower the others."""
        del lr
        moved = self.multipliers + self._lr * (seen.losses - self._bounds)
        counts = self._limited & seen.is_present & np.isfinite(moved)
        self.multipliers = np.where(counts, np.maximum(moved, 0), self.multipliers)

    def state_dict(self) -> dict:
        """Return the multipliers."""
        return {"multipliers": self.multipliers.tolist()}

    def load_state_dict(self, state: Mapping) -> None:
        """Take them back."""
        self.multipliers = np.array(state["multipliers"], dtype=np.float64)
