"""The folder of a run's checkpoints: written aside, verified, renamed, rotated.

```
.writing_N/   model.safetensors ... state.json, manifest.json    each file flushed to disk
              (of several ranks: model.rank_R.safetensors ..., each written by its own)
step_N/       the same folder, renamed and the rename flushed: from now on it counts
latest        its name, for people
```
A kill at any instant leaves the whole new checkpoint or none, and the older ones as they were.
"""

import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from torch import Tensor

from deepseek.checkpoint.crew import END, Crew
from deepseek.checkpoint.durable_file import Fingerprint, flush_folder, write_durably
from deepseek.checkpoint.manifest import read_manifest, verify, write_manifest
from deepseek.checkpoint.stored_tensors import StoredTensors
from deepseek.errors import CheckpointError
from deepseek.models.tensor_layout import bytes_of, encode_header, lay_out
from deepseek.models.tensor_part import place_of

PREFIX = "step_"
UNFINISHED = ".writing_"
REPLACED = ".replaced_"
DISCARDED = ".discarded_"
LATEST = "latest"
FENCE = "fence"
STATE = "state.json"
TENSORS = ".safetensors"
RANK = ".rank_"
SPARE_BYTES = 1 << 20  # for the JSON files, and what a file system needs for itself


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: groups of tensors by name, and the rest as JSON.

    Attributes:
        step: optimizer steps taken.
        tensors: group (`model`, `optimizer`, `ema`) -> name -> tensor. To be written: names of
            parts as well (`TensorPart.key`).
        state: anything JSON holds.
        own_state: likewise, different on each rank. Loaded: those of all ranks, by rank.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    state: dict = field(repr=False)
    own_state: dict = field(repr=False, default_factory=dict)

    def whole_bytes(self) -> int:
        """Return the bytes of the whole tensors of which these are parts: what all ranks write."""
        found = {}
        for group, tensors in self.tensors.items():
            for key, tensor in tensors.items():
                place = place_of(key, tensor.shape)
                found[group, place.name] = prod(place.shape) * tensor.element_size()
        return sum(found.values())


class CheckpointStore:
    """Saves and loads the checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many stay; older ones are deleted after a newer one is safe.
        keep_every: those whose step is a multiple of it stay for good; `None`: none do.
        crew: who writes.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_every: int | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.crew = crew or Crew()
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
        unfinished = self.folder / f"{UNFINISHED}{checkpoint.step}{self._mark}"
        save = self.crew.begin(checkpoint.step)
        try:
            save.lead("begin", lambda: self._begin(unfinished, checkpoint.whole_bytes()))
            made = save.collect("files", lambda: self._write(unfinished, checkpoint))
            save.lead(END, lambda: self._finish(checkpoint.step, unfinished, final, made))
            save.part()
        except Exception as error:
            save.part()
            if self.crew.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            if not isinstance(error, OSError | CheckpointError):
                raise
            reason = error.message if isinstance(error, CheckpointError) else error
            raise CheckpointError(
                f"{final} could not be saved: {reason}",
                fix="free disk space or choose another run folder; earlier checkpoints are intact",
            ) from error
        if self.crew.is_main:
            self._rotate({checkpoint.step, *keep_too})
        return final

    def _begin(self, unfinished: Path, num_bytes: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_fence()
        self._recover(f"{UNFINISHED}*{self._mark}")
        self._check_space(num_bytes)
        unfinished.mkdir()

    def _write(self, folder: Path, checkpoint: Checkpoint) -> dict:
        """Write this rank's files; return their sizes and hashes."""
        crew = self.crew
        mark = f"{RANK}{crew.rank}" if crew.size > 1 else ""
        files = {}
        for group, tensors in checkpoint.tensors.items():
            path = folder / f"{group}{mark}{TENSORS}"
            files[path.name] = write_durably(path, _parts(path, tensors))
        texts = {f"own_state{mark}.json": checkpoint.own_state}
        if crew.is_main:
            texts[STATE] = checkpoint.state
        for name, content in texts.items():
            files[name] = write_durably(folder / name, [json.dumps(content).encode()])
        return {name: file._asdict() for name, file in files.items()}

    def _finish(self, step: int, unfinished: Path, final: Path, made: list[dict]) -> None:
        files = {name: Fingerprint(**file) for each in made for name, file in each.items()}
        write_manifest(unfinished, step, files)
        flush_folder(unfinished)
        self._check_fence()
        self._publish(unfinished, final)

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes + SPARE_BYTES:
            raise OSError(f"it needs {num_bytes:,} bytes, the disk has {free:,} left")

    def _publish(self, unfinished: Path, final: Path) -> None:
        """Give the finished folder its name; a checkpoint of that name makes way, undeleted."""
        replaced = self.folder / f"{REPLACED}{final.name.removeprefix(PREFIX)}"
        if final.exists():
            final.rename(replaced)
        try:
            unfinished.rename(final)
        except OSError:  # another group has taken over, and discarded it
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            raise
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

    @property
    def _mark(self) -> str:
        return f".{self.crew.group}" if self.crew.group else ""

    def take_over(self) -> None:
        """Make this group of processes the only one that may write here from now on.

        Where a network falls in two, the other half may still be alive: its unfinished save is
        deleted, so that it can no longer be renamed, and it will find that it has been replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.crew.group:
            aside = self.folder / f"{FENCE}.new"
            write_durably(aside, [self.crew.group.encode()])
            aside.replace(self.folder / FENCE)
            flush_folder(self.folder)
        self.recover()

    def is_replaced(self) -> bool:
        """Return whether another group of processes has taken over."""
        path = self.folder / FENCE
        return bool(self.crew.group) and path.exists() and path.read_text() != self.crew.group

    def _check_fence(self) -> None:
        if self.is_replaced():
            raise CheckpointError(
                f"{self.folder} belongs to another group of processes, which has gone on with this"
                " run",
                fix="let that one go on; this one has ended",
            )

    def recover(self) -> None:
        """Tidy up after a killed save: finish its renaming, delete what it left half written."""
        self._recover(f"{UNFINISHED}*")

    def _recover(self, unfinished_names: str) -> None:
        for replaced in self.folder.glob(f"{REPLACED}*"):
            final = self.folder / f"{PREFIX}{replaced.name.removeprefix(REPLACED)}"
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                with suppress(OSError):  # another group has just published it
                    replaced.rename(final)
        for unfinished in self.folder.glob(unfinished_names):
            # In one operation: half deleted, another group could still give it its name.
            discarded = self.folder / f"{DISCARDED}{uuid4().hex}"
            with suppress(FileNotFoundError):
                unfinished.rename(discarded)
        for discarded in self.folder.glob(f"{DISCARDED}*"):
            shutil.rmtree(discarded, ignore_errors=True)

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
        return open_checkpoint(self.find_latest())

    def find_latest(self) -> Path:
        """Return the folder of the newest whole checkpoint, its files verified.

        Raises:
            CheckpointError: there is none.
        """
        try:
            self.recover()
        except OSError as error:  # a read-only folder can still be resumed from elsewhere
            warnings.warn(f"{self.folder} could not be tidied up: {error}", stacklevel=2)
        for path in self.steps():
            try:
                verify_checkpoint(path)
                open_checkpoint(path)
                return path
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
    """Verify and open one checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or not of this format.
    """
    verify_checkpoint(folder)
    return open_checkpoint(folder)


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with its hash, and the folder's name with its step.

    Raises:
        CheckpointError: something does not match.
    """
    folder = Path(folder)
    manifest = verify(folder)
    if folder.name.startswith(PREFIX) and folder.name != f"{PREFIX}{manifest.step}":
        raise CheckpointError(
            f"{folder} holds the checkpoint of step {manifest.step}: it was renamed",
            fix=f"rename it to {PREFIX}{manifest.step}, or use another",
        )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint that has been verified; its tensors are read where they are wanted.

    Raises:
        CheckpointError: a file is not of this format.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    groups: dict[str, list[Path]] = {}
    own: dict[int, str] = {}
    for name in manifest.files:
        stem, _, rank = name.rpartition(".")[0].partition(RANK)
        if name.endswith(TENSORS):
            groups.setdefault(stem, []).append(folder / name)
        elif stem == "own_state":
            own[int(rank or 0)] = name
    try:
        return Checkpoint(
            step=manifest.step,
            tensors={group: StoredTensors(paths) for group, paths in groups.items()},
            state=json.loads((folder / STATE).read_bytes()),
            own_state={
                str(rank): json.loads((folder / own[rank]).read_bytes()) for rank in sorted(own)
            },
        )
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error}", fix="use an older checkpoint"
        ) from error


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[memoryview | bytes]:
    """Return the bytes of a safetensors file, tensor by tensor."""
    try:
        header = lay_out(dict(tensors))
    except KeyError as error:
        raise CheckpointError(
            f"{path} cannot be written: safetensors has no {error}",
            fix="keep such values in a callback's state, or in a tensor of another dtype",
        ) from error
    yield encode_header(header)
    for name in header:
        yield bytes_of(tensors[name])
