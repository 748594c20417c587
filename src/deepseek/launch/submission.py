"""Handing a script or manifests to the tool of a cluster."""

import shutil
import subprocess
from collections.abc import Sequence

from deepseek.errors import ConfigError, DeepSeekError


def submit(command: Sequence[str], text: str) -> str:
    """Run a tool with `text` as its input; return what it prints.

    Raises:
        ConfigError: if the tool is not installed.
        DeepSeekError: if it refuses; with its own words.
    """
    tool = command[0]
    if shutil.which(tool) is None:
        raise ConfigError(
            f"{tool} is not on the path: nothing was submitted",
            fix=f"run this where {tool} is, or write the text with --dry-run and take it there",
            see="docs/launch.md",
        )
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DeepSeekError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}:"
            f" {done.stderr.strip() or done.stdout.strip()}",
            fix="look at the text with --dry-run",
            see="docs/launch.md",
        )
    return done.stdout
