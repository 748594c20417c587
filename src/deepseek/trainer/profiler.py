"""Where the time and the memory of a step go: `trainer.profile=true`.

```
profile/phases.json      seconds per step of data, forward, backward, optimizer, logging, other
profile/trace.json.gz    torch's own trace of a few steps, for https://ui.perfetto.dev
profile/memory.json      bytes of all tensors over these steps, by category
```
Each phase ends with a wait for the device, so that its time is its own.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter

import torch

from deepseek.trainer.clock import Clock
from deepseek.trainer.memory_timeline import read_timeline

PHASES = ("data", "forward", "backward", "optimizer", "logging", "other")
SKIPPED_STEPS = 3
"""Steps that warm up caches, compile and allocate: not measured."""
TRACED_STEPS = 3


class Profiler(Clock):
    """Measures the steps of a run and traces a few.

    Args:
        folder: `RUN/profile`.
        device: what is waited for.
        held: bytes by category of what stays from step to step.
    """

    def __init__(
        self, folder: Path, device: torch.device, held: Callable[[], dict[str, int]]
    ) -> None:
        self._folder = folder
        self._device = device
        self._held = held
        self._num_steps = 0
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._num_measured = 0
        self._step: dict[str, float] = {}
        self._step_began: float | None = None
        self._trace: torch.profiler.profile | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of a step."""
        began = perf_counter()
        if self._step_began is None:
            self._step_began = began
        with torch.profiler.record_function(name):
            yield
            self._wait()
        self._step[name] = self._step.get(name, 0.0) + perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def end_step(self) -> None:
        """Add the step up; begin and end the trace."""
        began, self._step_began = self._step_began, None
        step, self._step = self._step, {}
        self._num_steps += 1
        is_traced = self._trace is not None
        if began is not None and self._num_steps > SKIPPED_STEPS and not is_traced:
            step["other"] = max(0.0, perf_counter() - began - sum(step.values()))
            for name, seconds in step.items():
                self._seconds[name] += seconds
            self._num_measured += 1
        if self._num_steps == SKIPPED_STEPS:
            self._begin_trace()
        elif is_traced and self._num_steps == SKIPPED_STEPS + TRACED_STEPS:
            self._end_trace()

    def _begin_trace(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # acc_events: else torch 2.11 warns that events of earlier cycles are gone; there is one
        self._trace = torch.profiler.profile(
            activities=activities, profile_memory=True, acc_events=True
        )
        self._trace.start()

    def _end_trace(self) -> None:
        trace, self._trace = self._trace, None
        if trace is None:
            return
        trace.stop()
        held = self._held()
        with suppress(OSError):  # a full disk must not end a run for its profile
            self._folder.mkdir(exist_ok=True)
            path = self._folder / "trace.json.gz"
            trace.export_chrome_trace(str(path))
            points = read_timeline(path, self._device.type, held)
            (self._folder / "memory.json").write_text(json.dumps(points), encoding="utf-8")

    def per_step_s(self) -> dict[str, float]:
        """Return the mean seconds of each phase, over the steps that were measured."""
        return {name: total / max(1, self._num_measured) for name, total in self._seconds.items()}

    def close(self) -> list[str]:
        """Write what was measured; return it as the lines of a table."""
        self._end_trace()
        per_step = self.per_step_s()
        whole = sum(per_step.values())
        if not self._num_measured:
            return [f"profile: the run has no more than {SKIPPED_STEPS + TRACED_STEPS} steps"]
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            body = {"num_steps": self._num_measured, "seconds_per_step": per_step}
            (self._folder / "phases.json").write_text(json.dumps(body), encoding="utf-8")
        parts = "  ".join(
            f"{name} {1e3 * seconds:.2f} ms ({seconds / whole:.0%})"
            for name, seconds in per_step.items()
        )
        return [f"profile  a step takes {1e3 * whole:.2f} ms: {parts}", f"  {self._folder}"]
