"""What is done of an evaluation, in a file, so that one that was interrupted goes on where it was.

The first line says what is evaluated. One for every few seconds follows: the place in the data, the
sums of all metrics so far, and what was predicted of the samples since the line before. Metrics are
functions of sums, so the figures are those of an evaluation that was not interrupted.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deepseek.datasets import DataLoader
from deepseek.errors import ConfigError
from deepseek.trainer.metrics import Metric
from deepseek.whole_file import replacing

SAVE_EVERY_S = 2.0
KEPT = ("loss", "probs", "targets", "index")
"""Of what a task predicts of a sample."""


class EvaluationPart:
    """A file of what is done of an evaluation.

    Args:
        path: of the file; where it is missing it is made when something is done.
        about: what tells this evaluation from others, JSON-able.

    Attributes:
        num_batches: that are done.

    Raises:
        ConfigError: the file is of another evaluation.
    """

    def __init__(self, path: Path, about: dict) -> None:
        self._path = path
        self._head = json.dumps(about, sort_keys=True)
        self._lines = _read(path, self._head)
        self._loader: DataLoader | None = None
        self._num_written = 0
        self._saved_at = time.monotonic()
        self.num_batches = self._lines[-1]["batches"] if self._lines else 0

    def move(self, loader: DataLoader) -> None:
        """Let a loader go on behind the batches that are done."""
        self._loader = loader
        if self._lines:
            loader.load_state_dict(self._lines[-1]["at"])

    def restore(self, metrics: Mapping[str, Metric], kept: dict[str, list[Tensor]]) -> None:
        """Fill empty accumulators, and what was predicted, with what is done."""
        if not self._lines:
            return
        for name, sums in self._lines[-1]["sums"].items():
            metrics[name].take_sums(sums)
        for line in self._lines:
            for name, (dtype, rows) in line["samples"].items():
                rows = torch.tensor(rows, dtype=getattr(torch, dtype))
                kept.setdefault(name, []).append(rows)
        self._num_written = len(kept.get("index", ()))
        self._lines.clear()

    def note(self, metrics: Mapping[str, Metric], kept: Mapping[str, list[Tensor]]) -> None:
        """Count a batch, and write what is done where that is a while ago."""
        self.num_batches += 1
        if self._loader is None or time.monotonic() - self._saved_at < SAVE_EVERY_S:
            return
        new = {n: torch.cat(each[self._num_written :]) for n, each in kept.items() if n in KEPT}
        line = {
            "batches": self.num_batches,
            "at": self._loader.state_dict(),
            "sums": {name: metric.sums() for name, metric in metrics.items()},
            "samples": {
                name: [str(rows.dtype).removeprefix("torch."), rows.tolist()]
                for name, rows in new.items()
            },
        }
        if not self._path.exists():
            with replacing(self._path) as draft:
                draft.write_text(self._head + "\n", encoding="utf-8")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._num_written = len(kept.get("index", ()))
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Remove the file: all is done."""
        self._path.unlink(missing_ok=True)


def digest_of_files(path: Path, without: Path) -> str:
    """Return a hash of the names, sizes and times of the files at a path; of none where it is not.

    What was changed since an evaluation began is not evaluated on. `without` is the file of what is
    done, which may lie among them.
    """
    found, without = hashlib.sha256(), without.resolve()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file() and each.resolve() != without:
            known = each.stat()
            line = f"{each.relative_to(path)} {known.st_size} {known.st_mtime_ns}\n"
            found.update(os.fsencode(line))  # a name need not be UTF-8
    return found.hexdigest()


def _read(path: Path, head: str) -> list[dict]:
    """Return the whole lines behind the first, and cut off the half line of a killed process."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        if file.readline().decode(errors="replace").rstrip("\n") != head:
            raise ConfigError(
                f"{path} was begun by another run: other data, model or options",
                fix="run it as then, or remove the file",
            )
        keep, found = file.tell(), []
        for line in file:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
            keep = file.tell()
    os.truncate(path, keep)
    return found
