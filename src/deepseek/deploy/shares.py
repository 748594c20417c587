"""Shares as people write them."""

from deepseek.errors import ConfigError


def parse_share(text: str) -> float:
    """Return `0.5%` or `0.005` as a number.

    Raises:
        ValueError: it is neither.
    """
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def read_share(name: str, text: str | None) -> float | None:
    """Return `50%` or `0.5` as 0.5; `None` as it is.

    Raises:
        ConfigError: it is no number.
    """
    try:
        return None if text is None else parse_share(text)
    except ValueError:
        raise ConfigError(f"{name}={text} is no share", fix=f"give {name} 50%") from None


def parse_tolerance(tolerance: float | str) -> float:
    """Return a share: `0.005`, `"0.005"` and `"0.5%"` are the same.

    Raises:
        ConfigError: it is no number, or not from 0 to 1.
    """
    try:
        share = parse_share(str(tolerance).strip())
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(
            f"tolerance={tolerance!r} is not a share from 0 to 1",
            fix='give one such as 0.005, or "0.5%"',
        )
    return share
