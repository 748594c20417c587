"""A pickled whole module, read by a process of its own that can reach nothing.

A pickle is a program. It runs in a child (`unpickle_child`) that has given up the network, other
processes and all writing before the first byte is read, under limits of memory and time. What comes
back is a safetensors file, which is read as any stranger's: tensors, and JSON on the module.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deepseek.convert.system_calls import check_supported
from deepseek.errors import CheckpointError
from deepseek.models.model_file import read_tensors
from deepseek.models.tensor_layout import parse_object, read_layout

TIMEOUT_S = 600
KEY = "unpickled"
_MAX_SHOWN = 300


@dataclass(frozen=True)
class Unpickled:
    """What a child found in a pickle.

    Attributes:
        kind: class of the object.
        state: name -> tensor.
        config: of a Hugging Face model.
        facts: what the parts of the module say.
    """

    kind: str
    state: dict[str, Tensor]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]


def unpickle(path: Path, timeout_s: float = TIMEOUT_S) -> Unpickled:
    """Read a pickled module or state dict in a process that can reach nothing.

    Args:
        path: what `torch.save` wrote.
        timeout_s: seconds after which the child is killed.

    Raises:
        ConfigError: the system cannot shut a process in.
        CheckpointError: the child fails, or gives back something else.
    """
    check_supported()
    with tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "deepseek.convert.unpickle_child", str(path.resolve()),
                   str(found.fileno())]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=timeout_s,
                pass_fds=(found.fileno(),), start_new_session=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(
                f"{path} was not read within {timeout_s:g} s", fix="give module.state_dict()"
            ) from error
        if done.returncode:
            raise CheckpointError(
                f"{path} cannot be read as a pickled module: {_last_line(log)}"
                f" (exit code {done.returncode})",
                fix="its classes must be importable from here; what else it asked for is forbidden:"
                " where you trust it, load it yourself and give module.state_dict()",
            )
        found.seek(0)
        return _read(found, path)


def _read(file: Any, path: Path) -> Unpickled:
    layout = read_layout(file, path)
    state, _ = read_tensors(file, layout, path)
    info = parse_object(layout.metadata.get(KEY, "{}"), path, "description")
    config, facts = info.get("config"), info.get("facts")
    if not isinstance(config, dict) or not isinstance(facts, dict):
        raise CheckpointError(f"{path} gave back no description", fix="give module.state_dict()")
    allowed = {key: value for key, value in facts.items() if isinstance(value, int | float)}
    return Unpickled(_printable(str(info.get("kind"))), state, config, allowed)


def describe(kind: str, config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that a child gives back."""
    return {KEY: json.dumps({"kind": kind, "config": config, "facts": facts}, default=str)}


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = log.read()[-4096:].decode(errors="replace").strip().splitlines()
    return _printable(lines[-1]) if lines else "it said nothing"


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:_MAX_SHOWN]
