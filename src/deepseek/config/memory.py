"""What a run may keep from forward to backward: `memory: pointwise`, `24GiB`, `0.6`."""

import re
from typing import Annotated, Literal

from pydantic import Field

from deepseek.config.settings import Number

MemoryPolicyName = Literal["off", "pointwise", "selective", "full"]
MemoryBudget = Annotated[
    str, Field(pattern=r"^\d+(\.\d+)? ?(KiB|MiB|GiB|TiB|KB|MB|GB|TB)$", examples=["24GiB"])
]
MemorySetting = MemoryPolicyName | MemoryBudget | Annotated[Number, Field(gt=0, le=1)]
_SIZE = re.compile(r"([\d.]+) ?([KMGT])(i?)B")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """Return the bytes that `24GiB` or `1.5 GB` stands for; checked by `MemoryBudget`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no number of bytes such as 24GiB")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[letter])
