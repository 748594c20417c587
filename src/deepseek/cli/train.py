"""`deepseek train`: configuration -> run folder."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from deepseek.cli.model_options import RunDir

DEFAULT_CONFIG = "model_config.yaml"


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="Configuration (model_config.yaml) and settings to change: trainer.epochs=5",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[=RUN]",
            help="Go on with the newest run, or with --resume=RUN: name, folder, checkpoint.",
        ),
    ] = None,
    run_dir: RunDir = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take one step on paper: memory, collectives, checks."),
    ] = False,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the dry run; as many as the plan takes."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="The one that is walked; 0.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validate: a model for each of N folds.")
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option(min=0, help="With --folds: one of those to run; all.")
    ] = None,
    together: Annotated[
        bool, typer.Option(help="With --folds: keep texts that are almost the same in one fold.")
    ] = False,
) -> None:
    """Train the model that a configuration describes."""
    _refuse_for_real(dry_run, world_size, rank, resume, run_dir)
    check_folds(folds, fold, together, dry_run or resume is not None)
    from deepseek.cli.model_args import check_args
    from deepseek.cli.run_folders import find_resume
    from deepseek.config import read_config

    path, overrides = split_arguments(arguments or [])
    resume_from = None
    if resume is not None:
        _refuse_ignored(arguments or [], overrides, run_dir)
        resume_from, run = find_resume(resume)
        path = str(run / "config.yaml")
    loaded = read_config(path, overrides, check_args=check_args)
    for change in loaded.changes:
        print(f"changed  {change}")
    count = 1 if folds else loaded.config.trainer.parallel.num_processes or 1
    if dry_run:
        from deepseek.cli.dry_run import print_dry_run

        print_dry_run(loaded.config, world_size or count, rank or 0)
        return
    if count > 1 and "WORLD_SIZE" not in os.environ:
        _start_processes(count, arguments or [], resume, run_dir)
    if folds is not None:
        from deepseek.cli.train_folds import train_folds

        train_folds(loaded.config, folds, fold, run_dir, together=together)
        return
    from deepseek.cli.build_run import build_trainer

    trainer = build_trainer(loaded.config, run_dir=run_dir, resume=resume_from)
    trainer.fit()


def _refuse_for_real(
    dry_run: bool,
    world_size: int | None,
    rank: int | None,
    resume: str | None,
    run_dir: Path | None,
) -> None:
    """Refuse options that the other kind of run would ignore."""
    from deepseek.errors import ConfigError

    given = {"--world-size": world_size, "--rank": rank}
    if dry_run:
        given = {"--resume": resume, "--run-dir": run_dir}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option}={value} {'and' if dry_run else 'without'} --dry-run",
                fix="leave it away: a dry run writes nothing, and has nothing to go on from"
                if dry_run
                else "add --dry-run; a real run has as many processes as trainer.parallel says",
            )


def check_folds(folds: int | None, fold: list[int] | None, together: bool, is_other: bool) -> None:
    """Refuse options of folds that would be ignored.

    Raises:
        ConfigError: they are given without `--folds`, or beside a run of another kind.
    """
    from deepseek.errors import ConfigError

    if folds is None and (fold or together):
        raise ConfigError("--fold and --together are of --folds", fix="add --folds=5")
    if folds is not None and is_other:
        raise ConfigError(
            f"--folds={folds} beside --dry-run or --resume",
            fix="leave those away; folds that are finished in --run-dir are not run again",
        )


def _start_processes(
    count: int, arguments: Sequence[str], resume: str | None, run_dir: Path | None
) -> None:
    """Start this command again on as many processes as its plan takes, and exit as they do."""
    from deepseek.launch.job import Job
    from deepseek.launch.supervisor import launch

    options = [f"--resume={resume}"] if resume is not None else []
    options += [f"--run-dir={run_dir}"] if run_dir is not None else []
    program = ("train", *options, *arguments)
    print(f"deepseek launch --nproc {count} {' '.join(program)}", flush=True)
    sys.exit(launch(Job(program, nproc=count, run_id=f"train-{uuid4().hex[:12]}"), None))


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the configuration file and the overrides among `arguments`.

    Raises:
        ConfigError: if there are two files.
    """
    from deepseek.errors import ConfigError

    # `Path.is_file` raises where an override is longer than a file name may be
    files = [entry for entry in arguments if "=" not in entry or os.path.isfile(entry)]
    overrides = [entry for entry in arguments if entry not in files]
    if len(files) > 1:
        raise ConfigError(
            f"{len(files)} configuration files, {', '.join(files)}: a run has one",
            fix="write settings to change as section.key=value, such as trainer.epochs=5",
        )
    return (files or [DEFAULT_CONFIG])[0], overrides


def with_resume_value(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with a bare `--resume` of `train` completed to `--resume=latest`.

    An option with an optional value is more than the parser knows; so `--resume` never takes the
    word behind it, which may be the configuration.
    """
    if not arguments or arguments[0] != "train":
        return list(arguments)
    return ["--resume=latest" if entry == "--resume" else entry for entry in arguments]


def _refuse_ignored(
    arguments: Sequence[str], overrides: Sequence[str], run_dir: Path | None
) -> None:
    from deepseek.errors import ConfigError

    if run_dir is not None:
        raise ConfigError(
            f"--run-dir={run_dir} and --resume: a resumed run stays in its folder",
            fix="leave --run-dir away",
        )
    if len(arguments) > len(overrides):
        raise ConfigError(
            "a configuration file and --resume: a resumed run has its own configuration",
            fix="leave the file away; settings such as trainer.epochs=20 may be changed",
        )
