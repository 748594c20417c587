"""Damage to files: flipped bits, and files that are cut, blank, swapped, old or gone."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random


def flip_bit(path: Path, draws: Random) -> Callable[[], None]:
    """Flip one bit of a file; return what flips it back."""
    at = draws.randrange(path.stat().st_size)
    mask = 1 << draws.randrange(8)

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ mask]))

    flip()
    return flip


def truncate(path: Path, older: Path) -> None:
    """Cut off the last bytes."""
    with path.open("r+b") as file:
        file.truncate(max(0, path.stat().st_size - 7))


def blank(path: Path, older: Path) -> None:
    """Write zeros over all of it."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, older: Path) -> None:
    """Exchange it with another file of its folder."""
    other = next(p for p in sorted(path.parent.iterdir()) if p.name not in (path.name,))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def take_older(path: Path, older: Path) -> None:
    """Put the file of an older checkpoint in its place."""
    shutil.copy(older / path.name, path)


def remove(path: Path, older: Path) -> None:
    """Delete it."""
    path.unlink()


DAMAGES: Mapping[str, Callable[[Path, Path], None]] = {
    "truncated": truncate,
    "blank": blank,
    "swapped": swap,
    "of an older checkpoint": take_older,
    "missing": remove,
}
"""What may happen to a file of a checkpoint folder: function of (file, an older checkpoint)."""
