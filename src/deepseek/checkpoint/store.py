"""The folder of a run's checkpoints: written aside, verified, renamed, rotated.

A checkpoint is `step_N/` with `model.safetensors`, `optimizer.safetensors`, `state.json` and a
manifest. It is written
to a temporary folder, every file is flushed to disk, then the folder is renamed: a kill at any
    instant leaves either
the whole checkpoint or none.
"""

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepseek.checkpoint.manifest import verify, write_manifest
from deepseek.errors import CheckpointError

PREFIX = "step_"
UNFINISHED = ".writing_"
LATEST = "latest"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and the rest as JSON."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many stay; older ones are deleted after a newer one is safe.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and return its folder.

        Raises:
            CheckpointError: the disk is full, read-only or forbids it; earlier checkpoints stay as
                they were.
        """
        final = self.folder / f"{PREFIX}{checkpoint.step}"
        unfinished = self.folder / f"{UNFINISHED}{checkpoint.step}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save_file(_separate(checkpoint.model), unfinished / "model.safetensors")
            save_file(_separate(checkpoint.optimizer), unfinished / "optimizer.safetensors")
            (unfinished / "state.json").write_text(json.dumps(checkpoint.state))
            write_manifest(unfinished, checkpoint.step)
            for path in unfinished.iterdir():
                _flush(path)
            _flush(unfinished)
            if final.exists():
                shutil.rmtree(final)
            unfinished.rename(final)
            self._point_to(final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"{final} could not be saved: {error}",
                fix="free disk space or choose another run folder; earlier checkpoints are intact",
            ) from error
        self._rotate()
        return final

    def _point_to(self, final: Path) -> None:
        pointer = self.folder / f"{LATEST}.new"
        pointer.write_text(final.name + "\n")
        _flush(pointer)
        pointer.replace(self.folder / LATEST)
        _flush(self.folder)

    def _rotate(self) -> None:
        for path in self.steps()[self.keep :]:
            shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[Path]:
        """Return the checkpoint folders, newest first. Names alone are looked at."""
        found = {}
        for path in self.folder.glob(f"{PREFIX}*"):
            number = path.name.removeprefix(PREFIX)
            if number.isdigit() and path.is_dir():
                found[int(number)] = path
        return [found[step] for step in sorted(found, reverse=True)]

    def load_latest(self) -> Checkpoint:
        """Load the newest whole checkpoint; damaged ones are set aside with a warning.

        Raises:
            CheckpointError: there is none.
        """
        for path in self.steps():
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                aside = path.with_name(f"damaged_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                warnings.warn(f"{error.message}; set aside as {aside.name}", stacklevel=2)
        raise CheckpointError(
            f"{self.folder} holds no whole checkpoint",
            fix="start the run anew, or point resume at another run",
        )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verify and load one checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format.
    """
    folder = Path(folder)
    step = verify(folder)
    try:
        return Checkpoint(
            step=step,
            model=load_file(folder / "model.safetensors"),
            optimizer=load_file(folder / "optimizer.safetensors"),
            state=json.loads((folder / "state.json").read_bytes()),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every name storage of its own: safetensors refuses tensors that share it."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        is_shared = pointer in seen and tensor.numel() > 0
        seen.add(pointer)
        separate[name] = tensor.detach().clone() if is_shared else tensor.detach().contiguous()
    return separate


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
