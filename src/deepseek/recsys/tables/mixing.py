"""Numbers that look random, as a function of ids: where an id is kept, and how its vector begins.

Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (OOPSLA), figure
16, whose mixing function this is, in 64-bit arithmetic that wraps.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEP = 0x9E37_79B9_7F4A_7C15 - 2**64
_FIRST, _SECOND = 0xBF58_476D_1CE4_E5B9 - 2**64, 0x94D0_49BB_1331_11EB - 2**64


def mix(numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Return a random-looking number for each int64 number; different ones stay different."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)).mul_(_SECOND)
    return numbers ^ _shifted(numbers, 31)


def uniform(ids: Int[Tensor, "N"], num: int, seed: int) -> Float[Tensor, "N num"]:
    """Return `num` numbers in -1 <= x < 1 for each id: always the same, whatever came before."""
    steps = torch.arange(1, num + 1, device=ids.device) * STEP
    numbers = mix(mix(ids ^ seed)[:, None] + steps)
    return (numbers >> 40).float().div_(2**23)  # signed, of 24 bits: exact in float32


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    return (numbers >> bits) & (2 ** (64 - bits) - 1)  # without the sign
