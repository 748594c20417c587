"""Callbacks observe a run and may ask it to stop; their state is part of the checkpoint.

```
on_fit_begin
for each step:  on_step_end
    when due:   on_eval_end
for each epoch: on_epoch_end
on_fit_end
```
They never edit the model, the optimizer or a batch.
"""

import math
from typing import TYPE_CHECKING

from deepseek.errors import ConfigError

if TYPE_CHECKING:
    from deepseek.trainer.step_values import StepResult
    from deepseek.trainer.trainer import Trainer


class Callback:
    """Base with every event as a no-op; override what you need."""

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Before the first step."""

    def on_step_end(self, trainer: "Trainer", result: "StepResult") -> None:
        """After every optimizer step; `result` is on the device, reading it waits."""

    def on_eval_end(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """After every evaluation on the validation data."""

    def on_epoch_end(self, trainer: "Trainer", record: dict) -> None:
        """After every epoch; `record` is its line in `metrics.jsonl`."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step, before the report is drawn."""

    def state_dict(self) -> dict:
        """Return JSON-able state for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take the state back."""


class BestModel(Callback):
    """Keeps the model of the best evaluation as `model.bin`.

    Args:
        monitor: name of a metric of the evaluation.
        higher_is_better: its direction.
    """

    def __init__(self, monitor: str, higher_is_better: bool) -> None:
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.best: float | None = None
        self.best_step: int | None = None

    def is_better(self, value: float) -> bool:
        """Return whether `value` beats the best so far; NaN never does."""
        return is_better(value, self.best, self.higher_is_better)

    def on_eval_end(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Save the model if it is the best so far."""
        value = monitored(metrics, self.monitor)
        if not self.is_better(value):
            return
        try:
            trainer.save_model()
        except OSError as error:
            trainer.warn(f"the best model so far could not be saved: {error}")
            return
        self.best, self.best_step = value, trainer.step

    def state_dict(self) -> dict:
        """Return the best value and its step."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self.best, self.best_step = state["best"], state["best_step"]


class EarlyStopping(Callback):
    """Asks to stop after `patience` evaluations in a row without improvement.

    Args:
        monitor: name of a metric of the evaluation.
        patience: evaluations.
        higher_is_better: direction of the metric.
    """

    def __init__(self, monitor: str, patience: int, higher_is_better: bool) -> None:
        self.monitor = monitor
        self.patience = patience
        self.higher_is_better = higher_is_better
        self.best: float | None = None
        self.num_worse = 0

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Stop at once where patience was at its end before the run was killed."""
        if self._is_over:
            trainer.wish = trainer.stop_reason = self._reason  # every rank has the same state

    def on_eval_end(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Count, and stop when patience is at its end."""
        value = monitored(metrics, self.monitor)
        if is_better(value, self.best, self.higher_is_better):
            self.best, self.num_worse = value, 0
            return
        self.num_worse += 1
        if self._is_over:
            trainer.request_stop(self._reason)

    @property
    def _is_over(self) -> bool:
        return self.num_worse >= self.patience

    @property
    def _reason(self) -> str:
        best = "never a number" if self.best is None else f"best {self.best:.4g}"
        return f"{self.monitor} did not improve in {self.patience} evaluations ({best})"

    def state_dict(self) -> dict:
        """Return the best value and the count."""
        return {"best": self.best, "num_worse": self.num_worse}

    def load_state_dict(self, state: dict) -> None:
        """Take them back."""
        self.best, self.num_worse = state["best"], state["num_worse"]


def is_better(value: float, best: float | None, higher_is_better: bool) -> bool:
    """Return whether a value beats the best so far; NaN never does."""
    if best is None:
        return not math.isnan(value)
    return value > best if higher_is_better else value < best


def monitored(metrics: dict[str, float], name: str) -> float:
    """Return a metric by name.

    Raises:
        ConfigError: the evaluation does not give it.
    """
    if name not in metrics:
        raise ConfigError(
            f"monitor={name!r} is not a metric of this run",
            fix=f"choose one of: {', '.join(sorted(metrics))}",
        )
    return metrics[name]
