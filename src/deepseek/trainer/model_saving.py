"""The model of a run as one file, also where ranks hold parts of it."""

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from deepseek.checkpoint import StoredTensors
from deepseek.models.model_file import ModelFile, write_model_file
from deepseek.parallel.apply import ParallelModel
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
    problems = _attempt(parallel, lambda: _make_anew(folder) if world.is_main else None)
    written = {p.key: p.tensor.contiguous() for p in parallel.parts() if p.is_written}
    own = folder / f"rank_{world.rank}.safetensors"
    problems = problems or _attempt(parallel, lambda: save_file(written, own))
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


def _attempt(parallel: ParallelModel, act) -> list[str]:
    """Act on every rank; return what went wrong anywhere."""
    problem = None
    try:
        act()
    except (OSError, SafetensorError) as error:  # a full disk is either
        problem = str(error)
    return [each for each in parallel.world.exchange(problem) if each]
