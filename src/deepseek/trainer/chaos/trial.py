"""Runs in processes of their own, which can be killed.

Processes come from multiprocessing's fork server, which imports torch once.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import torch

from deepseek.errors import DeepSeekError
from deepseek.trainer.run_folder import RunFolder
from deepseek.trainer.trainer import Trainer

# (run folder, resume) -> trainer; picklable: a function of a module, or a partial of one
Factory = Callable[[Path, bool], Trainer]
PRELOADED = (
    "torch", "torch._dynamo", "deepseek.trainer", "deepseek.datasets", "deepseek.models",
    "deepseek.deploy.report",
)  # fmt: skip
BEGUN = "begun"
POLL_S = 0.01


def start(
    factory: Factory, run: Path, *, resume: bool = False, expects_error: bool = False
) -> BaseProcess:
    """Start a run in a process of its own.

    Args:
        factory: makes the trainer.
        run: the run folder.
        resume: go on with it.
        expects_error: leave the message of an error away.

    Its exit code is that of the error that ended it, 0 without one. The file `begun` beside the
    run folder is written when the trainer is made and `fit` begins.
    """
    method = multiprocessing.get_start_method()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    run.parent.mkdir(parents=True, exist_ok=True)
    begun = run.parent / BEGUN
    begun.unlink(missing_ok=True)
    process = context.Process(
        target=_train, args=(factory, run, resume, torch.get_num_threads(), method, expects_error)
    )
    process.start()
    return process


def _train(
    factory: Factory, run: Path, resume: bool, num_threads: int, method: str, expects_error: bool
) -> None:
    torch.set_num_threads(num_threads)
    # the run's own workers start as they would without us
    multiprocessing.set_start_method(method, force=True)
    try:
        trainer = factory(run, resume)
        (run.parent / BEGUN).touch()
        trainer.fit()
    except DeepSeekError as error:
        with suppress(OSError):
            if expects_error:
                sys.exit(error.exit_code)
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def run_to_end(factory: Factory, run: Path, *, resume: bool = False) -> float:
    """Run to the end and return the seconds that `fit` took.

    Raises:
        RuntimeError: it ended with another exit code than 0.
    """
    process = start(factory, run, resume=resume)
    _wait_for_begin(process, run)
    began = time.perf_counter()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run ended with exit code {process.exitcode}")
    return time.perf_counter() - began


def run_with_kills(
    factory: Factory, run: Path, draws: Random, num_kills: int, whole_s: float
) -> int:
    """Run to the end through SIGKILLs at random moments.

    Args:
        factory: makes the trainer.
        run: the run folder. What is killed before its first save is begun anew.
        draws: of the moments.
        num_kills: kills that are tried.
        whole_s: what `fit` takes undisturbed; each of its `num_kills` parts gets a kill.

    Returns:
        The number of kills that hit a living run.
    """
    for number in range(num_kills):
        process = start(factory, run, resume=RunFolder(run).has_saved)
        _wait_for_begin(process, run)
        process.join(draws.uniform(0, whole_s / num_kills))
        if process.exitcode == 0:
            return number
        if process.exitcode is not None:
            raise RuntimeError(f"the run ended with exit code {process.exitcode}")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if run.exists() and not RunFolder(run).has_saved:
            run.rename(run.with_name(f"{run.name}_killed_early_{number}"))
    run_to_end(factory, run, resume=RunFolder(run).has_saved)
    return num_kills


def _wait_for_begin(process: BaseProcess, run: Path) -> None:
    while process.exitcode is None and not (run.parent / BEGUN).exists():
        time.sleep(POLL_S)
