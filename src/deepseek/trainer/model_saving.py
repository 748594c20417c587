"""The model of a run as one file, also where ranks hold parts of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from deepseek.checkpoint import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.model_file import ModelFile, write_model_file
from deepseek.parallel.apply import ParallelModel
from deepseek.parallel.world import World
from deepseek.trainer.growing import table_tensors


def save_model(parallel: ParallelModel, path: Path) -> None:
    """Write `model.bin`; on several ranks each writes its parts, which rank 0 puts together.

    Raises:
        OSError: the disk is full, or forbids it.
    """
    world, engine = parallel.world, parallel.engine
    if not world.is_distributed:
        engine.save(path)
        return
    world.mark("a checkpoint")  # rank 0 may write for long
    folder = path.parent / f".{path.name}.parts"
    problems = attempt(world, lambda: _make_anew(folder), is_led=True)
    written = {p.key: p.tensor.contiguous() for p in parallel.parts() if p.is_written}
    own = folder / f"rank_{world.rank}.safetensors"
    problems = problems or attempt(world, lambda: save_file(written, own))
    if world.is_main and not problems:
        try:
            stored = StoredTensors(sorted(folder.glob("rank_*.safetensors")))
            tensors = dict(stored)  # names of one weight share one tensor
            state = {name: tensors[known] for name, known in parallel.whole_names.items()}
            state |= table_tensors(engine.module)
            content = ModelFile(
                engine.architecture, engine.config, engine.spec, state, changes=engine.changes
            )
            write_model_file(path, content)
        except (OSError, SafetensorError) as error:
            problems = [str(error)]
    problems = [each for each in world.exchange(problems) if each]
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise OSError(problems[0][0])


def _make_anew(folder: Path) -> None:
    """Make a folder without what a run that was killed has left there, maybe of more ranks."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()


def attempt(world: World, act: Callable[[], object], *, is_led: bool = False) -> list[str]:
    """Read or write files on every rank; return on each what went wrong anywhere.

    Args:
        world: the ranks.
        act: reads or writes.
        is_led: whether rank 0 alone acts.
    """
    problem = None
    try:
        if world.is_main or not is_led:
            act()
    except (OSError, SafetensorError, CheckpointError) as error:  # a full disk is any of them
        problem = str(error)
    return [each for each in world.exchange(problem) if each]
