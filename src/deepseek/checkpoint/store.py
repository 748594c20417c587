"""The folder of a run's checkpoints: written aside, verified, renamed, rotated.

```
.writing_N/   model.safetensors ... state.json, manifest.json    each file flushed to disk
step_N/       the same folder, renamed and the rename flushed: from now on it counts
latest        its name, for people
```
A kill at any instant leaves the whole new checkpoint or none, and the older ones as they were.
"""

import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deepseek.checkpoint.durable_file import flush_folder, write_durably
from deepseek.checkpoint.manifest import verify, write_manifest
from deepseek.errors import CheckpointError
from deepseek.models.tensor_layout import bytes_of, encode_header, lay_out

PREFIX = "step_"
UNFINISHED = ".writing_"
REPLACED = ".replaced_"
LATEST = "latest"
STATE = "state.json"
TENSORS = ".safetensors"
SPARE_BYTES = 1 << 20  # for the JSON files, and what a file system needs for itself


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of tensors by name, and the rest as JSON.

    Attributes:
        step: optimizer steps taken.
        tensors: group (`model`, `optimizer`, `ema`) -> name -> tensor.
        state: anything JSON holds.
    """

    step: int
    tensors: Mapping[str, dict[str, Tensor]] = field(repr=False)
    state: dict = field(repr=False)

    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(t.nbytes for group in self.tensors.values() for t in group.values())


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many stay; older ones are deleted after a newer one is safe.
        keep_every: those whose step is a multiple of it stay for good; `None`: none do.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.keep_every = keep_every

    # -- writing -----------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, keep_too: Collection[int] = ()) -> Path:
        """Write a checkpoint and return its folder.

        Args:
            checkpoint: what to write; replaces one of the same step.
            keep_too: steps that stay beside the newest, such as the best one.

        Raises:
            CheckpointError: the disk is full, read-only or forbids it; earlier checkpoints stay as
                they were.
        """
        final = self.folder / f"{PREFIX}{checkpoint.step}"
        unfinished = self.folder / f"{UNFINISHED}{checkpoint.step}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.recover()
            self._check_space(checkpoint.num_bytes())
            unfinished.mkdir()
            files = {}
            for group, tensors in checkpoint.tensors.items():
                path = unfinished / f"{group}{TENSORS}"
                files[path.name] = write_durably(path, _parts(path, tensors))
            state = json.dumps(checkpoint.state).encode()
            files[STATE] = write_durably(unfinished / STATE, [state])
            write_manifest(unfinished, checkpoint.step, files)
            flush_folder(unfinished)
            self._publish(unfinished, final)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"{final} could not be saved: {error}",
                fix="free disk space or choose another run folder; earlier checkpoints are intact",
            ) from error
        self._rotate({checkpoint.step, *keep_too})
        return final

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes + SPARE_BYTES:
            raise OSError(f"it needs {num_bytes:,} bytes, the disk has {free:,} left")

    def _publish(self, unfinished: Path, final: Path) -> None:
        """Give the finished folder its name; a checkpoint of that name makes way, undeleted."""
        replaced = self.folder / f"{REPLACED}{final.name.removeprefix(PREFIX)}"
        if final.exists():
            final.rename(replaced)
        unfinished.rename(final)
        flush_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        pointer = self.folder / f"{LATEST}.new"
        write_durably(pointer, [f"{final.name}\n".encode()])
        pointer.replace(self.folder / LATEST)
        flush_folder(self.folder)

    def _rotate(self, protected: Collection[int]) -> None:
        for step, path in list(self._by_step().items())[self.keep :]:
            is_kept = self.keep_every is not None and step % self.keep_every == 0
            if not is_kept and step not in protected:
                shutil.rmtree(path, ignore_errors=True)

    def recover(self) -> None:
        """Tidy up after a killed save: finish its renaming, delete what it left half written."""
        for replaced in self.folder.glob(f"{REPLACED}*"):
            final = self.folder / f"{PREFIX}{replaced.name.removeprefix(REPLACED)}"
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(final)
        for unfinished in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    # -- reading -----------------------------------------------------------------------------

    def _by_step(self) -> dict[int, Path]:
        found = {}
        for path in self.folder.glob(f"{PREFIX}*"):
            number = path.name.removeprefix(PREFIX)
            if number.isdigit() and path.is_dir():
                found[int(number)] = path
        return dict(sorted(found.items(), reverse=True))

    def steps(self) -> list[Path]:
        """Return the checkpoint folders, newest first. Names alone are looked at."""
        return list(self._by_step().values())

    def load_latest(self) -> Checkpoint:
        """Load the newest whole checkpoint; damaged ones are set aside with a warning.

        Raises:
            CheckpointError: there is none.
        """
        try:
            self.recover()
        except OSError as error:  # a read-only folder can still be resumed from elsewhere
            warnings.warn(f"{self.folder} could not be tidied up: {error}", stacklevel=2)
        for path in self.steps():
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                aside = set_aside(path, "damaged")
                warnings.warn(f"{error.message}; set aside as {aside.name}", stacklevel=2)
        raise CheckpointError(
            f"{self.folder} holds no whole checkpoint",
            fix="start the run anew, or point resume at another run",
        )

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename the checkpoints after `step`: a run that goes on from there leaves that course."""
        later = [path for number, path in self._by_step().items() if number > step]
        return [set_aside(path, "superseded") for path in later]


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint so that it no longer counts; return its new path."""
    aside = path.with_name(f"{why}_{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verify and load one checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format.
    """
    folder = Path(folder)
    manifest = verify(folder)
    if folder.name.startswith(PREFIX) and folder.name != f"{PREFIX}{manifest.step}":
        raise CheckpointError(
            f"{folder} holds the checkpoint of step {manifest.step}: it was renamed",
            fix=f"rename it to {PREFIX}{manifest.step}, or use another",
        )
    groups = [name for name in manifest.files if name.endswith(TENSORS)]
    try:
        return Checkpoint(
            step=manifest.step,
            tensors={name.removesuffix(TENSORS): load_file(folder / name) for name in groups},
            state=json.loads((folder / STATE).read_bytes()),
        )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error}", fix="use an older checkpoint"
        ) from error


def _parts(path: Path, tensors: dict[str, Tensor]) -> Iterator[memoryview | bytes]:
    """Return the bytes of a safetensors file, tensor by tensor."""
    try:
        header = lay_out(tensors)
    except KeyError as error:
        raise CheckpointError(
            f"{path} cannot be written: safetensors has no {error}",
            fix="keep such values in a callback's state, or in a tensor of another dtype",
        ) from error
    yield encode_header(header)
    for name in header:
        yield bytes_of(tensors[name])
