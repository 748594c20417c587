"""Finished trials, a line each, so that a search that was interrupted goes on where it was."""

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deepseek.deploy.machine import fingerprint
from deepseek.version import __version__

PACKAGES = (
    "torch", "torchao", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino", "nncf",
    "executorch",
)  # fmt: skip


class Journal:
    """Lines of `trials.jsonl`, by key.

    Args:
        path: of the file; it need not exist.
        known: what all trials of this search depend on, JSON-able: model, data, ...
    """

    def __init__(self, path: Path, known: dict) -> None:
        self._path = path
        self._known = {**known, "machine": fingerprint(), "versions": versions()}
        self._lines: dict[str, dict] = {}
        self._is_torn = False
        if path.exists():
            content = path.read_text(encoding="utf-8")
            self._is_torn = bool(content) and not content.endswith("\n")
            for line in content.splitlines():
                with suppress(ValueError, KeyError, TypeError):  # the half line of a killed process
                    entry = json.loads(line)
                    self._lines[entry["key"]] = entry

    def find(self, what: dict) -> dict | None:
        """Return the line of a trial that was done here before."""
        return self._lines.get(self._key(what))

    def add(self, what: dict, found: dict) -> dict:
        """Write what a trial found."""
        entry = {"key": self._key(what), **what, **found}
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_torn + json.dumps(entry) + "\n")
        self._is_torn = False
        self._lines[entry["key"]] = entry
        return entry

    def _key(self, what: dict) -> str:
        content = json.dumps({**self._known, **what}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    found = {"deepseek": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
