"""A save that ends at its k-th write, flush or rename."""

import multiprocessing
import os
from pathlib import Path

from deepseek.checkpoint import Checkpoint, CheckpointStore, store
from deepseek.trainer.chaos.trial import PRELOADED

CRASHED = 137


def save_and_crash(folder: Path, checkpoint: Checkpoint, number: int, *, half: bool) -> bool:
    """Save in a process that ends at its `number`-th operation.

    Args:
        folder: of the checkpoints.
        checkpoint: what is saved.
        number: of the operation, from 1.
        half: write half of the file before the end, instead of nothing.

    Returns:
        Whether the process crashed; `False`: the save has fewer operations, and is done.

    Raises:
        RuntimeError: the save failed in another way.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_save, args=(folder, checkpoint, number, half))
    process.start()
    process.join()
    if process.exitcode not in (0, CRASHED):
        raise RuntimeError(f"the save ended with exit code {process.exitcode}")
    return process.exitcode == CRASHED


def _save(folder: Path, checkpoint: Checkpoint, number: int, half: bool) -> None:
    count = 0

    def counted(function, torn=None):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                if half and torn is not None:
                    torn(*args)
                os._exit(CRASHED)
            return function(*args, **kwargs)

        return call

    write = os.write
    os.write = counted(write, lambda file, data: write(file, data[: len(data) // 2]))
    os.fsync = counted(os.fsync)
    for name in ("rename", "replace", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    store.shutil.rmtree = counted(store.shutil.rmtree)
    CheckpointStore(folder, keep=2).save(checkpoint)
    os._exit(0)
