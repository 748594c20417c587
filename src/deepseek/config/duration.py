"""A span of time in a setting: `90s`, `20m`, `1h30m`, `2d`."""

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

PATTERN = r"^(?=\d)(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?$"
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str) -> float:
    """Return the seconds that `1h30m` stands for.

    Raises:
        ValueError: it is written otherwise, or is no time at all.
    """
    seconds = 0.0
    if re.fullmatch(PATTERN, text):
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time such as 90s, 20m or 1h30m")
    return seconds


def _check(value: object) -> object:
    try:
        if isinstance(value, str):
            parse_duration(value)
            return value
    except ValueError:
        pass
    raise PydanticCustomError(
        "told",
        "expected a time above 0 with its unit: 90s, 20m, 1h30m, 2d",
        {"fix": "write twenty minutes as 20m"},
    )


Duration = Annotated[
    str,
    BeforeValidator(_check),
    WithJsonSchema({"type": "string", "pattern": PATTERN, "examples": ["20m", "1h30m"]}),
]
