"""The faults of `deepseek chaos`, one after another, each with what it must come to."""

import math
import os
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

from deepseek.checkpoint import CheckpointStore, load_checkpoint
from deepseek.errors import CheckpointError, DivergedError
from deepseek.trainer.callbacks import Callback
from deepseek.trainer.chaos.crash import save_and_crash
from deepseek.trainer.chaos.damage import DAMAGES, flip_bit
from deepseek.trainer.chaos.outcome import differences, read_outcome
from deepseek.trainer.chaos.poison import PLACES, Poison
from deepseek.trainer.chaos.trial import Factory, run_to_end, run_with_kills, start
from deepseek.trainer.trainer import Trainer

LEAVE_WITHIN_S = 5.0


@dataclass(frozen=True)
class CheckResult:
    """What came of one kind of fault.

    Attributes:
        num_passed, num_trials: how many went as they must.
        failures: in words, the first few.
        skipped: why it was not tried at all, or "".
    """

    num_passed: int
    num_trials: int
    failures: tuple[str, ...] = ()
    skipped: str = ""


class Bench:
    """What every check works on.

    Args:
        factory: makes the trainer of the user's run; it saves at every step.
        folder: where everything is written.
        num_trials: faults of each kind.
        seed: of all random moments and places.
    """

    def __init__(self, factory: Factory, folder: Path, num_trials: int, seed: int = 0) -> None:
        self.factory = factory
        self.folder = folder
        self.num_trials = num_trials
        self.seed = seed
        self.whole = folder / "whole" / "run"
        self.whole_s = run_to_end(factory, self.whole)
        self.expected = read_outcome(self.whole)

    def judge(self, name: str, trial: Callable[[int, Path, Random], str | None]) -> CheckResult:
        """Run trials; each gets its number, a folder and draws, and returns what went wrong."""
        failures = []
        for number in range(self.num_trials):
            folder = self.folder / name / str(number)
            folder.mkdir(parents=True)
            try:
                problem = trial(number, folder, Random(f"{self.seed} {name} {number}"))
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                failures.append(f"trial {number}: {problem}")
            shutil.rmtree(folder, ignore_errors=True)
        return CheckResult(self.num_trials - len(failures), self.num_trials, tuple(failures[:3]))

    def compare(self, run: Path) -> str | None:
        """Return in what a run differs from the undisturbed one."""
        return "; ".join(differences(self.expected, read_outcome(run))) or None


def kills(bench: Bench) -> CheckResult:
    """SIGKILL at random moments, resume, run to the end: the same bits."""

    def trial(number: int, folder: Path, draws: Random) -> str | None:
        run_with_kills(bench.factory, folder / "run", draws, 2, bench.whole_s)
        return bench.compare(folder / "run")

    return bench.judge("kills", trial)


def signals(bench: Bench) -> CheckResult:
    """SIGTERM at random moments: saved and gone within 5 s, and the same bits after a resume."""

    def trial(number: int, folder: Path, draws: Random) -> str | None:
        run = folder / "run"
        process = start(bench.factory, run, expects_error=True)
        while process.exitcode is None and not (run / "config.yaml").exists():
            time.sleep(0.01)
        process.join(draws.uniform(0.05, bench.whole_s))
        began = time.monotonic()
        process.terminate()
        process.join()
        if (took_s := time.monotonic() - began) > LEAVE_WITHIN_S:
            return f"it took {took_s:.1f} s to leave"
        if process.exitcode not in (0, 143, -signal.SIGTERM):
            return f"exit code {process.exitcode}"
        if process.exitcode:
            run_to_end(bench.factory, run, resume=(run / "checkpoints").is_dir())
        return bench.compare(run)

    return bench.judge("signals", trial)


def crash_points(bench: Bench) -> CheckResult:
    """The process ends at the k-th write, flush or rename of a save: a whole checkpoint loads."""
    newest, older = _two_checkpoints(bench)
    failures, number = [], 0
    for half in (False, True):
        number = 0
        crashed = True
        while crashed:
            number += 1
            folder = bench.folder / "crash" / f"{number}_{half}"
            CheckpointStore(folder).save(older)
            crashed = save_and_crash(folder, newest, number, half=half)
            try:
                loaded = CheckpointStore(folder).load_latest()
                if loaded.step not in (older.step, newest.step):
                    failures.append(f"operation {number}: step {loaded.step} was loaded")
            except CheckpointError as error:
                failures.append(f"operation {number}: {error.message}")
            shutil.rmtree(folder, ignore_errors=True)
    return CheckResult(2 * number - len(failures), 2 * number, tuple(failures[:3]))


def flipped_bits(bench: Bench) -> CheckResult:
    """One flipped bit anywhere in a checkpoint is noticed before use."""
    folder = shutil.copytree(_newest(bench), bench.folder / "flips" / _newest(bench).name)
    files = sorted(folder.iterdir())
    draws, failures = Random(bench.seed), []
    num_trials = 10 * bench.num_trials
    for _ in range(num_trials):
        path = draws.choice(files)
        flip_back = flip_bit(path, draws)
        try:
            load_checkpoint(folder)
        except CheckpointError:
            pass
        else:
            failures.append(f"a flipped bit of {path.name} went unnoticed")
        flip_back()
    load_checkpoint(folder)
    return CheckResult(num_trials - len(failures), num_trials, tuple(failures[:3]))


def damaged_files(bench: Bench) -> CheckResult:
    """Files cut, blank, swapped, old or missing: the next older checkpoint is taken instead."""
    newest, older = _two_checkpoints(bench)
    failures, num_trials = [], 0
    names = [path.name for path in sorted(_newest(bench).iterdir())]
    for name in names:
        for kind, damage in DAMAGES.items():
            num_trials += 1
            store = CheckpointStore(bench.folder / "damage" / f"{num_trials}")
            old = store.save(older)
            new = store.save(newest)
            damage(new / name, old)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = store.load_latest()
            if loaded.step != older.step:
                failures.append(f"{name} {kind}: step {loaded.step} was loaded")
            shutil.rmtree(store.folder)
    return CheckResult(num_trials - len(failures), num_trials, tuple(failures[:3]))


def full_disk(bench: Bench) -> CheckResult:
    """No file may grow past a few bytes from a random step on: the last checkpoint survives."""

    def trial(number: int, folder: Path, draws: Random) -> str | None:
        run = folder / "run"
        at = draws.randrange(2, max(3, bench.expected.step))  # the first checkpoint is whole
        process = start(partial(_starved, bench.factory, at), run, expects_error=True)
        process.join()
        if process.exitcode not in (0, 75):
            return f"exit code {process.exitcode}"
        run_to_end(bench.factory, run, resume=True)
        return bench.compare(run)

    return bench.judge("full disk", trial)


class _Starve(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, trainer, result) -> None:
        if trainer.step == self.at:
            trainer.saving.wait()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def _starved(factory: Factory, at: int, run: Path, resume: bool) -> Trainer:
    trainer = factory(run, resume)
    trainer.callbacks.append(_Starve(at))
    return trainer


def bad_numbers(bench: Bench) -> CheckResult:
    """NaN or Inf in loss, gradient, weight, optimizer or batch: caught in its step, not saved."""
    trainer = bench.factory(bench.folder / "probe" / "run", False)
    places = list(PLACES)
    inputs = trainer.spec.fields.get("inputs")
    if inputs is None or "float" not in inputs.dtype:
        places.remove("batch")

    def trial(number: int, folder: Path, draws: Random) -> str | None:
        at = draws.randrange(1, max(2, bench.expected.step))
        value = draws.choice([math.nan, math.inf, -math.inf])
        poison = Poison(places[number % len(places)], value, at, seed=number)
        trainer = bench.factory(folder / "run", False)
        trainer.callbacks.append(poison)
        try:
            trainer.fit()
        except DivergedError as error:
            if not error.message.startswith(f"step {at + 1}: "):
                return f"{poison.place} of step {at + 1} was found late: {error.message}"
        else:
            return f"{value} in {poison.place} at step {at + 1} went unnoticed"
        saved = CheckpointStore(folder / "run" / "checkpoints").load_latest()
        for group in saved.tensors.values():
            for name, tensor in group.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    return f"{name} of a checkpoint is not finite"
        return None

    return bench.judge("bad numbers", trial)


def every_step(bench: Bench) -> CheckResult:
    """Resume from every step of the run: the same bits at the end."""
    failures = []
    steps = CheckpointStore(bench.whole / "checkpoints").steps()
    for path in steps:
        run = bench.folder / "steps" / path.name / "run"
        shutil.copytree(bench.whole, run, ignore=shutil.ignore_patterns("step_*", "latest"))
        shutil.copytree(path, run / "checkpoints" / path.name)
        try:
            run_to_end(bench.factory, run, resume=True)
            if problem := bench.compare(run):
                failures.append(f"{path.name}: {problem}")
        except (RuntimeError, OSError) as error:
            failures.append(f"{path.name}: {error}")
        shutil.rmtree(run.parent)
    return CheckResult(len(steps) - len(failures), len(steps), tuple(failures[:3]))


def lost_worker(bench: Bench) -> CheckResult:
    """A killed worker of the loader ends the run with a clear error, and a resume goes on."""
    if not bench.factory(bench.folder / "probe2" / "run", False).train_loader.num_processes:
        return CheckResult(0, 0, skipped="the run has no loader workers")

    def trial(number: int, folder: Path, draws: Random) -> str | None:
        run = folder / "run"
        at = draws.randrange(1, max(2, bench.expected.step))
        process = start(partial(_without_worker, bench.factory, at), run, expects_error=True)
        process.join()
        if process.exitcode not in (0, 3):  # 0: the batches that were left had been fetched
            return f"exit code {process.exitcode}"
        if process.exitcode:
            run_to_end(bench.factory, run, resume=True)
        return bench.compare(run)

    return bench.judge("lost worker", trial)


class _KillWorker(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, trainer, result) -> None:
        if trainer.step == self.at:
            for pid in trainer.train_loader.worker_pids():
                os.kill(pid, signal.SIGKILL)


def _without_worker(factory: Factory, at: int, run: Path, resume: bool) -> Trainer:
    trainer = factory(run, resume)
    trainer.callbacks.append(_KillWorker(at))
    return trainer


def _newest(bench: Bench) -> Path:
    return CheckpointStore(bench.whole / "checkpoints").steps()[0]


def _two_checkpoints(bench: Bench):
    newest, older, *_ = CheckpointStore(bench.whole / "checkpoints").steps()
    return load_checkpoint(newest), load_checkpoint(older)


Check = Callable[[Bench], CheckResult]
CHECKS: Mapping[str, Check] = {
    "kills": kills,
    "signals": signals,
    "every-step": every_step,
    "crash-points": crash_points,
    "flipped-bits": flipped_bits,
    "damaged-files": damaged_files,
    "full-disk": full_disk,
    "bad-numbers": bad_numbers,
    "lost-worker": lost_worker,
}
"""Every check by its name; its docstring says what must happen."""
