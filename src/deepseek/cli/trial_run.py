"""The runs of `verify-resume` and `chaos`: the user's configuration, short and saved at each step.

They end by steps: a schedule that follows the clock has other learning rates in every run.

Imported by commands when they run, never at start-up: it brings torch.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from deepseek.cli.build_run import build_trainer
from deepseek.cli.model_args import check_args
from deepseek.config import read_config
from deepseek.trainer import Trainer
from deepseek.trainer.chaos import Factory


def trial_factory(path: str, overrides: Sequence[str], num_steps: int) -> Factory:
    """Return what makes the trainer of a configuration, in any process.

    Args:
        path: of the configuration.
        overrides: settings that the user changes.
        num_steps: steps of a trial run at most.

    Raises:
        ConfigError: the configuration is wrong.
    """
    budget = read_config(path, overrides, check_args=check_args).config.trainer.time_budget
    if budget is not None:
        typer.echo(
            f"time_budget={budget} is left out here: a run by the clock is not the same twice;"
            f" these end after {num_steps} steps",
            err=True,
        )
    settings = [
        *overrides,
        "trainer.time_budget=null",
        f"trainer.max_steps={num_steps}",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=1000000",
        "trainer.log_every=1",
        "trainer.loggers=[jsonl]",
        "trainer.profile=false",
    ]
    read_config(path, settings, check_args=check_args)
    return partial(_make_trainer, path, settings)


def _make_trainer(path: str, settings: Sequence[str], run: Path, resume: bool) -> Trainer:
    config = read_config(path, settings, check_args=check_args).config
    return build_trainer(config, run_dir=None if resume else run, resume=run if resume else None)
