"""The bench itself: what is measured, in which order, and how the time is shared out.

What a measurement needs to begin with (a GPU's libraries, worker processes, torch's import in the
processes that talk to each other) is not known beforehand; so each gets a share of the time that
is left, and one for which too little is left is left out, saying so.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import torch

from deepseek.bench.arithmetic import measure_matmul, measure_memory
from deepseek.bench.input_rates import measure_decoding, measure_disk
from deepseek.bench.result import BenchResult, Rate
from deepseek.bench.standard_models import StandardModel, measure_training, standard_models
from deepseek.deploy.machine import fingerprint
from deepseek.doctor import Verdict, processor
from deepseek.doctor.bandwidth import is_inside_job, measure_bandwidth
from deepseek.doctor.machine import Machine
from deepseek.doctor.message_sizes import size_text
from deepseek.errors import ConfigError, DeepSeekError
from deepseek.models.device import resolve_device
from deepseek.trainer.precision import chip_has_bf16

MIN_BUDGET_S = 10.0
MIN_LINKS_S = 20.0
"""Two processes import torch and meet: less is not enough on a slow disk."""
LINKS_BYTES = 16 * 2**20
TRAINING_SHARE = 0.7
"""Of what is left when the machine was measured; the rest is for building and ending runs."""
Report = Callable[[str], None]


def bench_machine(
    budget_s: float = 120.0,
    *,
    folder: Path | None = None,
    device: str = "auto",
    models: Sequence[StandardModel] | None = None,
    on_begin: Report | None = None,
) -> BenchResult:
    """Measure what this machine gives, and what our defaults reach of it.

    Args:
        budget_s: seconds for all of it, 10 at least.
        folder: whose disk is measured; the current one.
        device: `cpu`, `cuda`, `cuda:1`; `auto`: an accelerator where there is one.
        models: to train; the standard ones.
        on_begin: called with the name of each measurement as it begins.

    Raises:
        ConfigError: the budget is too small, there is no such folder, or this is a job of several
            processes.
    """
    machine = Machine(folder=(folder or Path.cwd()).absolute())
    _check(budget_s, machine)
    began = perf_counter()
    where = resolve_device(device)
    result = BenchResult(_describe(where), budget_s, warnings=_slowed_by(machine))
    bench = _Bench(result, began + budget_s, on_begin or (lambda name: None))
    _measure_machine(bench, machine, where)
    chosen = standard_models(where.type) if models is None else models
    for at, standard in enumerate(chosen):
        seconds = TRAINING_SHARE * bench.left_s / (len(chosen) - at)
        bench.train(standard, seconds, where)
    result.took_s = perf_counter() - began
    return result


def _describe(device: torch.device) -> dict[str, str]:
    """Return the fingerprint of the machine, without a graphics card that nothing runs on."""
    found = fingerprint()
    return found if device.type == "cuda" else {k: v for k, v in found.items() if k != "gpu"}


def _check(budget_s: float, machine: Machine) -> None:
    if budget_s < MIN_BUDGET_S:
        raise ConfigError(
            f"budget={budget_s:g}s is not >= {MIN_BUDGET_S:g}s: nothing could be measured in it",
            fix="give more, such as --budget 30s",
        )
    if not machine.folder.is_dir():
        raise ConfigError(f"{machine.folder} is no folder", fix="give one that exists")
    if is_inside_job(machine.env):
        raise ConfigError(
            f"WORLD_SIZE={machine.env['WORLD_SIZE']}: the bench starts its own processes",
            fix="start it without torchrun; links of a job: deepseek doctor --bandwidth",
        )


def _slowed_by(machine: Machine) -> list[str]:
    """What the doctor says of the processors: others use them, a low clock, a quota."""
    found = [finding for look in processor.CHECKS for finding in look(machine)]
    return [
        finding.what for finding in found if finding.verdict.severity >= Verdict.WARNING.severity
    ]


class _Bench:
    """A result that grows, and the time that is left for it."""

    def __init__(self, result: BenchResult, end: float, on_begin: Report) -> None:
        self.result = result
        self._end = end
        self._on_begin = on_begin

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - perf_counter())

    def rate(self, name: str, measure: Callable[[], Rate | tuple[Rate, ...]]) -> None:
        """Measure one thing; where that cannot be, say why."""
        self._on_begin(name)
        try:
            found = measure()
        except (DeepSeekError, OSError, RuntimeError) as error:
            self.leave_out(name, str(error).splitlines()[0])
            return
        self.result.rates.extend(found if isinstance(found, tuple) else (found,))

    def train(self, standard: StandardModel, seconds: float, device: torch.device) -> None:
        """Train a standard model, where there is time to."""
        if seconds <= 0.0:
            self.leave_out(standard.name, "no time was left: give a larger --budget")
            return
        self._on_begin(standard.name)
        with tempfile.TemporaryDirectory(prefix="deepseek-bench-") as place:
            try:
                rate = measure_training(
                    standard, seconds, Path(place, "run"), self.result.matmul_tflops,
                    device=str(device),
                )  # fmt: skip
            except (DeepSeekError, OSError, RuntimeError) as error:  # lack of memory, most likely
                self.leave_out(standard.name, str(error).splitlines()[0])
                return
        self.result.training.append(rate)

    def leave_out(self, name: str, why: str) -> None:
        """Note what was not measured."""
        self.result.left_out.append((name, why))


def _measure_machine(bench: _Bench, machine: Machine, device: torch.device) -> None:
    share_s = bench.left_s / 24
    for precision in ("fp32", "bf16"):
        if precision == "bf16" and not chip_has_bf16(device):
            bench.leave_out("matmul bf16", f"this {device.type} has no bf16 in hardware")
            continue
        bench.rate(
            f"matmul {precision}", lambda name=precision: measure_matmul(name, device, 2 * share_s)
        )
    bench.rate("memory", lambda: measure_memory(device, share_s / 2))
    space = machine.space(machine.folder)
    free_bytes = space.free_bytes if space else 0
    bench.rate("disk", lambda: measure_disk(machine.folder, free_bytes, 2 * share_s))
    with tempfile.TemporaryDirectory(prefix="deepseek-bench-") as place:
        bench.rate("JPEG decoding", lambda: measure_decoding(Path(place), share_s))
    if bench.left_s > 2 * MIN_LINKS_S:
        bench.rate("collectives", lambda: _measure_links(machine))
    else:
        bench.leave_out("collectives", "no time was left: give a larger --budget")


def _measure_links(machine: Machine) -> Rate:
    """The bandwidth test of `deepseek doctor`, at one size."""
    found = measure_bandwidth([LINKS_BYTES], machine=machine)
    if found is None:  # of a job, which was refused
        raise DeepSeekError("this process is a rank of a job")
    facts = found.facts
    remark = (
        f"all-reduce of {size_text(LINKS_BYTES)}, {facts['world_size']} processes,"
        f" {facts['backend']}"
    )
    return Rate("collectives", found.peak_gbs, "GB/s", remark)
