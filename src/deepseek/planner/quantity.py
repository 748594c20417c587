"""Quantities as people write them: `300B` tokens, `400GB/s`, `3.2Tbit/s`."""

import re

from deepseek.config.memory import parse_bytes
from deepseek.errors import ConfigError

GIB = 2**30
_COUNT = re.compile(r"([\d._]+)\s*([kKmMbBgGtT]?)")
_RATE = re.compile(r"([\d.]+)\s*([kMGT]?)(B|bit|b)(?:/s|ps)")
_POWERS = {"": 1e0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_count(text: str, option: str) -> float:
    """Return the number that `300B`, `1.5T` or `40_000` stands for.

    Raises:
        ConfigError: it is none.
    """
    match = _COUNT.fullmatch(text.strip())
    number = _to_float(match[1]) if match else None
    if match is None or not number:
        raise ConfigError(
            f"{option} {text}: no number above 0 such as 300B.",
            fix="write digits and K, M, B (or G) or T behind them",
        )
    return number * _POWERS[match[2].lower()]


def parse_rate(text: str, option: str) -> float:
    """Return the bytes per second that `400GB/s` or `3200Gbit/s` stands for.

    Raises:
        ConfigError: it is no rate.
    """
    match = _RATE.fullmatch(text.strip())
    number = _to_float(match[1]) if match else None
    if match is None or not number:
        raise ConfigError(
            f"{option} {text}: no rate above 0 such as 400GB/s or 3200Gbit/s.",
            fix="write a number and GB/s (bytes) or Gbit/s (bits)",
        )
    return number * _POWERS[match[2].lower()] / (1 if match[3] == "B" else 8)


def parse_size(text: str, option: str) -> int:
    """Return the bytes that `2TiB` stands for.

    Raises:
        ConfigError: it is no size.
    """
    try:
        return parse_bytes(text.strip())
    except ValueError as error:
        raise ConfigError(f"{option}: {error}.", fix="write a number and GiB or TiB") from None


def _to_float(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def show_count(number: float) -> str:
    """Return `number` with three digits and K, M, B or T.

    Example:
        >>> show_count(174_600_000_000), show_count(512)
        ('175B', '512')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def pick_unit(largest_bytes: float) -> tuple[str, int]:
    """Return name and size of the unit that bytes are shown in: MiB below a tenth of a GiB."""
    return ("MiB", 2**20) if largest_bytes < GIB / 10 else ("GiB", GIB)


def show_bytes(size: float) -> str:
    """Return bytes in GiB, or in MiB below a tenth of one.

    Example:
        >>> show_bytes(3 * 2**29), show_bytes(3 * 2**19)
        ('1.5 GiB', '1.5 MiB')
    """
    unit, factor = pick_unit(size)
    return f"{size / factor:,.1f} {unit}"


def show_seconds(seconds: float) -> str:
    """Return seconds with the digits that matter in a table."""
    if seconds < 1:
        return f"{abs(seconds):.3f}"
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:,.0f}"
