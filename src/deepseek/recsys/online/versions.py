"""Versions of the model: folders that never change, and a pointer to the one that answers.

```
versions/000012/   model.bin, crosses.state, about.json
versions/current   {"version": 12, "is_pinned": false}, replaced in one step
versions/gate.jsonl  what the gate said of every version, those that were turned down too
```
`roll_back` points to an older one and pins it: the learner goes on learning, and publishes nothing
until `release`.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deepseek.checkpoint.durable_file import flush_folder, write_durably
from deepseek.errors import CheckpointError, ConfigError
from deepseek.whole_file import replacing

CURRENT, ABOUT, GATE, MODEL, CROSSES = (
    "current", "about.json", "gate.jsonl", "model.bin", "crosses.state",
)  # fmt: skip
GONE = ".gone_"
MAX_GATE_BYTES = 8 << 20


@dataclass(frozen=True)
class Pointer:
    """Which version answers.

    Attributes:
        version: its number; 0: there is none yet.
        is_pinned: whether it stays, whatever the learner publishes.
    """

    version: int = 0
    is_pinned: bool = False


class Versions:
    """See the module.

    Args:
        folder: of the versions.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int = 20) -> None:
        self.folder, self._keep = Path(folder), keep

    def path(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.folder / f"{version:06d}"

    def current(self) -> Pointer:
        """Return which version answers.

        Raises:
            CheckpointError: the pointer cannot be read.
        """
        try:
            return Pointer(**json.loads((self.folder / CURRENT).read_bytes()))
        except FileNotFoundError:
            return Pointer()
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.folder / CURRENT} cannot be read: {error}",
                fix="deepseek online rollback cfg.yaml --to VERSION",
            ) from error

    def numbers(self) -> list[int]:
        """Return the versions that are there, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(each.name) for each in self.folder.iterdir() if each.name.isdigit())

    def about(self, version: int) -> dict:
        """Return what is known of a version."""
        return json.loads((self.path(version) / ABOUT).read_bytes())

    def known(self, numbers: Iterable[int]) -> list[dict]:
        """Return what is known of versions, but of those that are deleted meanwhile."""
        found = []
        for number in numbers:
            with suppress(FileNotFoundError):
                found.append(self.about(number))
        return found

    def publish(self, write: Callable[[Path], None], about: dict) -> int | None:
        """Write a version and let it answer.

        Args:
            write: puts its files into a folder.
            about: what is known of it, JSON-able.

        Returns:
            Its number; `None` where an older one is pinned.
        """
        with self._held():
            if self.current().is_pinned:
                return None
            version = max([0, *self.numbers(), self.current().version]) + 1
            draft = self.folder / f".writing_{version}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            write(draft)
            content = {**about, "version": version, "time": time.time()}
            write_durably(draft / ABOUT, [json.dumps(content).encode()])
            for file in draft.iterdir():
                _flush(file)
            flush_folder(draft)
            draft.rename(self.path(version))
            self._point(Pointer(version))
            self._prune(version)
        return version

    def roll_back(self, to: int | None = None) -> Pointer:
        """Let an older version answer, and pin it.

        Args:
            to: its number; by default the one before that which answers.

        Raises:
            ConfigError: there is no such version.
        """
        with self._held():
            there = self.numbers()
            if to is None:
                now = self.current().version
                to = max((number for number in there if number < now), default=0)
            if to not in there:
                raise ConfigError(
                    f"there is no version {to or 'before this one'}",
                    fix=f"one of {', '.join(map(str, there)) or 'none: nothing was published'}",
                )
            pointer = Pointer(to, is_pinned=True)
            self._point(pointer)
        return pointer

    def release(self) -> Pointer:
        """Let the learner publish again."""
        with self._held():
            pointer = Pointer(self.current().version)
            self._point(pointer)
        return pointer

    def note(self, verdict: dict) -> None:
        """Add what the gate said to its file."""
        path = self.folder / GATE
        self.folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_GATE_BYTES:
            path.replace(path.with_suffix(".old.jsonl"))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")

    def _point(self, pointer: Pointer) -> None:
        with replacing(self.folder / CURRENT) as draft:
            write_durably(draft, [json.dumps(asdict(pointer)).encode()])
        flush_folder(self.folder)

    def _prune(self, version: int) -> None:
        for number in self.numbers()[: -self._keep]:
            if number != version:
                with suppress(OSError):  # in one step: a half of it must not count as a version
                    self.path(number).rename(self.folder / f"{GONE}{number}")
        for gone in self.folder.glob(f"{GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep others from moving the pointer meanwhile; readers never wait for this."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
