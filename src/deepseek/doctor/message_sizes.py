"""Message sizes on the command line: `1KiB:64MiB` is 1 KiB, 2 KiB, 4 KiB up to 64 MiB."""

import re

from deepseek.errors import ConfigError

UNITS = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
}
MAX_BYTES = 16 * 2**30
FACTOR = 2


def parse_sizes(text: str) -> list[int]:
    """Return the sizes in bytes, each twice the one before.

    Raises:
        ConfigError: the text is no range of sizes.

    Example:
        >>> parse_sizes("1KiB:4KiB")
        [1024, 2048, 4096]
    """
    first, colon, last = text.partition(":")
    low, high = _parse_size(first, text), _parse_size(last if colon else first, text)
    if not 4 <= low <= high <= MAX_BYTES:
        raise ConfigError(
            f"--sizes {text}: {low} to {high} bytes is no range of 4 bytes to {MAX_BYTES}",
            fix="give the smaller size first, such as --sizes 1KiB:64MiB",
        )
    sizes = [low]
    while sizes[-1] * FACTOR <= high:
        sizes.append(sizes[-1] * FACTOR)
    return sizes


def _parse_size(word: str, text: str) -> int:
    found = re.fullmatch(r"(\d{1,12})([a-z]{0,3})", word.strip().lower())
    if found is None or found[2] not in UNITS:
        raise ConfigError(
            f"--sizes {text}: {word!r} is no size",
            fix="give sizes such as 512B, 1KiB, 64MiB or 1GiB, as in --sizes 1KiB:64MiB",
        )
    return int(found[1]) * UNITS[found[2]]


def size_text(size_bytes: int) -> str:
    """Return a size in the largest unit that holds it whole or nearly.

    Example:
        >>> size_text(65536)
        '64 KiB'
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"
