"""The beginning of a run: its folder, made or found, and the state to go on from.

Rank 0 makes and finds; every rank loads its part.
"""

import itertools
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.config import dump_config
from deepseek.errors import ConfigError, PreemptedError
from deepseek.trainer.announcement import data_line, machine_line, model_line, plan_line
from deepseek.trainer.assembly import Assembly
from deepseek.trainer.console import Console
from deepseek.trainer.loggers import Logger, open_loggers
from deepseek.trainer.run_folder import RunFolder, describe_environment
from deepseek.trainer.training_state import find_checkpoint, restore

if TYPE_CHECKING:
    from deepseek.trainer.trainer import Trainer

LAUNCHED = ".launched"
"""Folder of marks: files that lead the processes of a restart to the runs of those before."""
COURSE = "course"
"""Of the mark that names the checkpoint that a launch has gone back to."""
_numbers = itertools.count()
"""Of the runs of this process that have no folder of their own: a script that is started again
begins the same ones in turn."""
_begun: set[Path] = set()
"""Marks that this process has used: a second run in a folder is not the first one restarted."""


def refuse_second(folder: RunFolder | None) -> None:
    """Refuse to begin in the midst: a trainer is where its run has left it.

    Args:
        folder: of the run that the trainer has begun.

    Raises:
        ConfigError: there is one.
    """
    if folder is not None:
        raise ConfigError(
            f"fit() was called before on this Trainer, whose run is in {folder.path}",
            fix=f"make another to go on: Trainer(..., resume={str(folder.path)!r})",
        )


def open_folder(
    trainer: "Trainer", resume: bool | str | Path | None, run_dir: Path | None, output: Path
) -> str:
    """Make or find the run folder and restore the state; return what the first line says of it.

    Raises:
        PreemptedError: the folder cannot be written.
        ConfigError, CheckpointError: there is nothing to resume, or another run is there.
    """
    world = trainer.world
    try:
        path, resume = world.lead(lambda: _choose(trainer, resume, run_dir, output))
        trainer.folder = RunFolder(Path(path), is_writer=world.is_main)
        if resume:
            return _go_on(trainer, resume)
        _write_config(trainer)
        environment = describe_environment(trainer.config.seed, trainer.device)
        environment["parallel"] = world.plan.describe()
        trainer.folder.write_json("environment.json", environment)
        world.seed(trainer.config.seed)
        if world.name:
            world.lead(trainer.saving.store.take_over)
    except OSError as error:
        raise PreemptedError(
            f"the run folder cannot be written: {error}",
            fix="free the disk, or copy the run folder to where it can be written, and resume",
        ) from error
    _check_shared(trainer)
    return ""


def _choose(
    trainer: "Trainer", resume: bool | str | Path | None, run_dir: Path | None, output: Path
) -> tuple[str, bool | str | None]:
    """Return the run folder, and what of it to resume."""
    number = next(_numbers) if run_dir is None else None
    if resume:
        folder = RunFolder.find(trainer.name, run_dir, resume, output).path
        asked = _checkpoint_of(resume)
        if asked is not None and _has_gone_back(RunFolder(folder), asked):
            return str(folder), True
        return str(folder), resume if isinstance(resume, bool) else str(resume)
    mark = _launch_mark(output, str(number)) if run_dir is None else _launch_mark(run_dir, "begun")
    if mark is not None and _was_here(mark):
        folder = run_dir or Path(mark.read_text(encoding="utf-8"))
        if RunFolder(folder).has_saved:
            return str(folder), True
        if run_dir is not None and not _is_finished(RunFolder(run_dir)):
            RunFolder(run_dir).begin_anew()
    folder = RunFolder.create(trainer.name, run_dir, output).path
    _leave(mark, str(folder.resolve()))
    return str(folder), None


def _has_gone_back(run: RunFolder, asked: str) -> bool:
    """Return whether this launch has gone back to a checkpoint before, and only goes on.

    A launch that somebody starts again by hand has the name of the first one, as a job of a cluster
    that is queued again has.

    Raises:
        ConfigError: it has, and the run is finished: nothing would be trained.
    """
    mark = _launch_mark(run.path, COURSE)
    if mark is None or not _was_here(mark) or mark.read_text(encoding="utf-8") != asked:
        return False
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return True
    before = f"the launch {os.environ['TORCHELASTIC_RUN_ID']} has gone back to {asked} before"
    if _is_finished(run):
        raise ConfigError(
            f"{before}, and the run in {run.path} is finished",
            fix=f"choose another --rdzv-id to go back again, or --resume={run.path} to go on",
            see="docs/launch.md",
        )
    warnings.warn(
        f"{before}: it goes on from what is saved since; with another --rdzv-id it would go back",
        stacklevel=2,
    )
    return True


def _is_finished(run: RunFolder) -> bool:
    """Return whether a run is at its end, which one without checkpoints can be, too."""
    kinds = [event.get("kind") for event in run.read_events()]
    return next((kind for kind in reversed(kinds) if kind in ("resume", "finish")), "") == "finish"


def _checkpoint_of(resume: bool | str | Path) -> str | None:
    """Return the name of the checkpoint that is to be resumed; `None` where a run is."""
    name = "" if isinstance(resume, bool) else Path(resume).name
    return name if name.startswith("step_") else None


def _launch_mark(place: Path, key: str) -> Path | None:
    """Return the mark of a run of this launch; `None` where nothing starts it again.

    Args:
        place: the folder of runs, or that of the run where it is known before it begins.
        key: what tells the run from others there.
    """
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if launch == "none" or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in launch)
    return place.resolve() / LAUNCHED / f"{name}-{key}"


def _was_here(mark: Path | None) -> bool:
    """Return whether this launch has left the mark before it was restarted."""
    if mark is None or mark in _begun:
        return False
    _begun.add(mark)
    return mark.exists()


def _leave(mark: Path | None, text: str) -> None:
    if mark is not None:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(text, encoding="utf-8")


def _go_on(trainer: "Trainer", resume: bool | str) -> str:
    store = trainer.saving.store
    if trainer.world.name:
        trainer.world.lead(store.take_over)
    checkpoint = find_checkpoint(store, resume, trainer.world)
    restore(trainer, checkpoint)
    if _checkpoint_of(resume) is not None:
        trainer.world.lead(lambda: _change_course(trainer, checkpoint.step))
    trainer.bad_steps.read_journal(trainer.folder, trainer.step)
    trainer.folder.rewind_metrics(trainer.step)
    _write_config(trainer)  # a resumed run may have been given more epochs
    was = checkpoint.state["plan"]
    now = trainer.world.plan.describe()
    trainer.folder.add_event("resume", step=trainer.step, parallel=now)
    moved = "" if was == now else f", saved as {was}"
    return f"resumed at step {trainer.step} (verified{moved})"


def _change_course(trainer: "Trainer", step: int) -> int:
    """Put aside the checkpoints after a step that the run goes back to; return how many.

    A restart of this launch goes on from what is saved from now on.
    """
    later = trainer.saving.store.set_aside_after(step)
    _leave(_launch_mark(trainer.folder.path, COURSE), f"step_{step}")
    return len(later)


def _write_config(trainer: "Trainer") -> None:
    """Write every setting as YAML: the whole file where there was one."""
    if trainer.run_config is not None:
        text = dump_config(trainer.run_config)
    else:  # JSON is YAML, and has no surprises
        text = json.dumps({"trainer": trainer.config.model_dump(mode="json")}, indent=1) + "\n"
    trainer.folder.write_text("config.yaml", text)


def _check_shared(trainer: "Trainer") -> None:
    """Make sure that all ranks see the same folder.

    Raises:
        ConfigError: a rank does not.
    """
    sees = (trainer.folder.path / "environment.json").exists()
    blind = [rank for rank, it in enumerate(trainer.world.exchange(sees)) if not it]
    if blind:
        raise ConfigError(
            f"rank {', '.join(map(str, blind[:4]))} does not see the run folder"
            f" {trainer.folder.path}: it is on a disk of rank 0's host",
            fix="put it on a file system that all hosts share: output, or run_dir",
        )


def _nothing_left(step: int, max_steps: int | None) -> str:
    is_done = max_steps is not None and step >= max_steps
    done = f"{step} of {max_steps} steps are taken" if is_done else "its time is used up"
    return f"nothing is left to train: {done}; more: trainer.epochs, max_steps or time_budget"


def begin_records(trainer: "Trainer", assembly: Assembly, resumed: str) -> None:
    """Say what is about to happen, and open the loggers; rank 0 alone is heard."""
    field = trainer.spec.fields.get("inputs")
    sample = "row" if field is None else {3: "img", 4: "vol"}.get(len(field.shape), "seq")
    is_main, names = trainer.world.is_main, trainer.config.loggers
    shown = is_main and "console" in names
    console = Console(trainer.folder.log if is_main else Path(os.devnull), shown, sample=sample)
    run = str(trainer.folder.path)
    console.line(
        machine_line(trainer.device, assembly.cpu_threads, run, trainer.config.seed, resumed)
    )
    console.line(model_line(trainer.model, assembly, trainer.device))
    console.line(data_line(trainer.train_loader, trainer.val_loader, trainer.spec))
    if (size := trainer.train_loader.batch_size) > (count := trainer.train_loader.num_samples):
        console.line(f"warning: batch_size={size}, of {count:,} samples: each step takes them all")
    if trainer.config.expandable_segments is True and trainer.device.type != "cuda":
        text = f"warning: expandable_segments=true does nothing on {trainer.device.type}"
        console.line(text)
    if trainer.world.is_distributed:
        console.line(plan_line(assembly.step.parallel, trainer.plan_reason))
    if resumed and assembly.length.is_over(trainer.step):
        console.line(_nothing_left(trainer.step, assembly.length.max_steps))
    settings = trainer.config.model_dump(mode="json")
    loggers: list[Logger] = []
    if is_main:
        loggers = open_loggers(
            names, trainer.folder, trainer.config.wandb_mode, settings, trainer.step, trainer.warn
        )
    trainer.recorder.begin(
        console, loggers, trainer.step, assembly.length.max_steps, assembly.num_epochs,
        assembly.length.budget_s,
    )  # fmt: skip
