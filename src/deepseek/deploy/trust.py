"""The files that can run code and that this user has written, by their hashes."""

import os
from collections.abc import Iterable
from pathlib import Path


def ledger() -> Path:
    """Return the file of hashes: `$XDG_DATA_HOME/deepseek/own_files`, a hash per line."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "deepseek" / "own_files"


def remember(hashes: Iterable[str]) -> None:
    """Add files that were written just now."""
    path = ledger()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write("".join(f"{each}\n" for each in hashes))


def is_trusted(digest: str) -> bool:
    """Return whether this user has written the file."""
    try:
        return digest in ledger().read_text().split()
    except OSError:
        return False
