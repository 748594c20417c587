"""What a run says of itself while it goes: records, curves, the console's table, its events.

```
after every step    add_step            numbers stay on the device
when due            log_step            a `train` line; waits for the device
after evaluating    log_evaluation      an `eval` line
at an epoch's end   end_epoch           an `epoch` line, and a line of the console's table
```
"""

from collections.abc import Sequence
from time import perf_counter

import torch

from deepseek.datasets import DataLoader
from deepseek.trainer.console import Console, format_seconds, of_all
from deepseek.trainer.loggers import Logger
from deepseek.trainer.metrics import Mean
from deepseek.trainer.step_values import StepResult
from deepseek.trainer.throughput import Throughput, peak_memory_bytes


class Recorder:
    """Keeps the records of a run, in memory and in every logger.

    Args:
        loader: the training data; says where in an epoch the run is.
        device: whose memory is reported.
        monitor: metric that the console shows.
    """

    def __init__(self, loader: DataLoader, device: torch.device, monitor: str) -> None:
        self._loader = loader
        self._device = device
        self._monitor = monitor
        self.records: list[dict] = []
        self.epoch_loss = Mean()
        self._epoch_parts: dict[str, Mean] = {}
        self._result: StepResult | None = None
        self._last: dict[str, float] = {"lr": 0.0}
        self._spent_s = 0.0
        self._loggers: Sequence[Logger] = ()

    def begin(
        self,
        console: Console,
        loggers: Sequence[Logger],
        step: int,
        max_steps: int | None,
        num_epochs: int | None,
        budget_s: float | None = None,
    ) -> None:
        """Start the clocks; what is not known of the length of the run is `None`."""
        self.console, self._loggers = console, loggers
        self._max_steps, self._num_epochs, self._budget_s = max_steps, num_epochs, budget_s
        self._began, self._began_step = perf_counter(), step
        self._window, self._epoch_window = Throughput(), Throughput()

    def time_s(self) -> float:
        """Return seconds spent in this run, over all its resumes."""
        return self._spent_s + perf_counter() - self._began

    def pause(self, began: float) -> None:
        """Leave the time since `began` out of the speed: it was not training."""
        for window in (self._window, self._epoch_window):
            window.paused_s += perf_counter() - began

    def add_step(self, result: StepResult, waited_s: float) -> None:
        """Count a step. Does not wait for the device."""
        self._result = result
        if result.bad is None:
            self.epoch_loss.update(result.loss_sum, result.num_items)
            for name, value in result.parts.items():
                mean = self._epoch_parts.setdefault(name, Mean())
                mean.update(torch.tensor(value), 1)
        for window in (self._window, self._epoch_window):
            window.num_samples += result.num_samples
            window.wait_s += waited_s

    def log_step(self, step: int, result: StepResult) -> None:
        """Write a `train` line. Waits for the device."""
        self.log(
            {
                "kind": "train",
                "step": step,
                "epoch": self._loader.epoch + self._loader.position / self._loader.num_samples,
                "loss": float(result.loss_sum) / max(1, result.num_items),
                **result.parts,
                "lr": result.lr,
                **_norm_of(result),
                **self._window.record(),
                "memory_bytes": peak_memory_bytes(self._device),
                "time_s": self.time_s(),
            }
        )
        self._window.reset()

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write an `eval` line, for an evaluation within an epoch."""
        self.log({"kind": "eval", "step": step, **metrics, "time_s": self.time_s()})

    def log(self, record: dict) -> None:
        """Give a record to every logger."""
        for logger in self._loggers:
            logger.log(record)

    def end_epoch(self, step: int, metrics: dict[str, float], is_best: bool) -> dict:
        """Write and return the record of an epoch."""
        last = self._last_step()
        record = {
            "kind": "epoch",
            "epoch": self._loader.epoch + 1,
            "step": step,
            "loss": self.epoch_loss.compute(),
            **{name: mean.compute() for name, mean in self._epoch_parts.items()},
            **metrics,
            "lr": last.pop("lr"),
            **self._epoch_window.record(),
            "memory_bytes": peak_memory_bytes(self._device),
            **last,
            "time_s": self.time_s(),
            "epoch_s": perf_counter() - self._epoch_window.begin,
            "eta_s": self._eta_s(step),
        }
        self.records.append({key: value for key, value in record.items() if key != "kind"})
        self.console.epoch(record, self._num_epochs, self._monitor, is_best)
        self.log(record)
        self.epoch_loss, self._epoch_parts = Mean(), {}
        self._epoch_window.reset()
        return record

    def _last_step(self) -> dict[str, float]:
        """Return learning rate and gradient norm of the last step, also of one before a resume."""
        if self._result is not None:
            self._last = {"lr": self._result.lr, **_norm_of(self._result)}
        return dict(self._last)

    def _eta_s(self, step: int) -> float:
        left = []
        if self._max_steps is not None:
            done = max(1, step - self._began_step)
            left.append((perf_counter() - self._began) / done * (self._max_steps - step))
        if self._budget_s is not None:
            left.append(max(0.0, self._budget_s - self.time_s()))
        return min(left)

    def show_progress(self, step: int, result: StepResult) -> None:
        """Move the bar, if it is time to."""
        if not self.console.wants_progress():
            return
        speed = self._epoch_window.record()
        loss = float(result.loss_sum) / max(1, result.num_items)
        tail = (
            f"loss {loss:.4f}  {speed['samples_per_s']:,.0f} {self.console.sample}/s"
            f"  data {100 * speed['data_wait_share']:.0f}%"
            f"  total eta {format_seconds(self._eta_s(step))}"
        )
        if self._budget_s is not None:
            tail += f" of {format_seconds(self._budget_s)}"
        head = of_all(self._loader.epoch + 1, self._num_epochs)
        self.console.progress(head, self._loader.position, self._loader.num_samples, tail)

    def close(self) -> None:
        """Close the loggers."""
        loggers, self._loggers = self._loggers, ()
        for logger in loggers:
            logger.close()

    def state_dict(self) -> dict:
        """Return what a resumed run goes on from; JSON-able."""
        return {
            "records": list(self.records),
            "epoch_loss": self.epoch_loss.state_dict(),
            "epoch_parts": {n: mean.state_dict() for n, mean in self._epoch_parts.items()},
            "last": self._last_step(),
            "spent_s": self.time_s(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take the state back."""
        self.records = list(state["records"])
        self.epoch_loss.load_state_dict(state["epoch_loss"])
        self._epoch_parts = {name: Mean() for name in state.get("epoch_parts", ())}
        for name, mean in self._epoch_parts.items():
            mean.load_state_dict(state["epoch_parts"][name])
        self._last = dict(state["last"])
        self._spent_s = state["spent_s"]


def _norm_of(result: StepResult) -> dict[str, float]:
    return {"grad_norm": float(result.grad_norm)} if result.grad_norm is not None else {}
