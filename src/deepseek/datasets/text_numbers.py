"""Numbers that stand in text: labels, cells of CSV, headers of pictures, numbers of JSON."""

from typing import Any


def read_number(value: object) -> float:
    """Return the number that a value is or holds as text, such as `-1.5`, `1e3` or `nan`.

    Raises:
        ValueError: it is none, or one with underscores, which Python takes: to it `1_0` is 10.
    """
    try:
        return float(_plain(value))
    except (TypeError, OverflowError) as error:  # a whole number of Python has no limit
        raise ValueError(str(error)) from error


def read_whole_number(value: object) -> int:
    """Return the whole number that a value is or holds as text, such as `10`; not `10.0`.

    Raises:
        ValueError: as above.
    """
    try:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{value} is not a whole number")
        return int(_plain(value))
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, str | bytes) and "_" in str(value):
        raise ValueError(f"{value!r} is not a number: digits are not divided by _")
    return value
