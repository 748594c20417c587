"""Randomness as a pure function of where it is used: (seed, epoch, index).

Own arithmetic (SplitMix64) rather than numpy's or torch's generators: it costs about a microsecond
to start for a sample, and the sequence cannot change with the version of a library.

Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_epoch: ContextVar[int] = ContextVar("epoch", default=0)


def mix(value: int) -> int:
    """Return the SplitMix64 hash of a 64-bit integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    """Return a 64-bit key that depends on every part and on their order."""
    key = 0
    for part in parts:
        key = mix((key + (part & _MASK) + _GAMMA) & _MASK)
    return key


class Draws:
    """Random numbers for one sample.

    Args:
        parts: what they depend on, such as (seed, epoch, index).
    """

    __slots__ = ("_state",)

    def __init__(self, *parts: int) -> None:
        self._state = derive_key(*parts)

    def bits(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + _GAMMA) & _MASK
        return mix(self._state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a float in [low, high)."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """Return an integer in low..high, both included."""
        return low + (self.bits() * (high - low + 1) >> 64)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability


def permutation(num_items: int, *parts: int) -> np.ndarray:
    """Return 0..num_items-1 in a random order (int64) that depends on `parts` alone."""
    return np.argsort(_many_bits(num_items, *parts), kind="stable")


def uniforms(num_items: int, *parts: int) -> np.ndarray:
    """Return floats in [0, 1), float64 (num_items,), that depend on `parts` alone."""
    return (_many_bits(num_items, *parts) >> np.uint64(11)) * 2.0**-53


def _many_bits(num_items: int, *parts: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = np.arange(1, num_items + 1, dtype=np.uint64) * np.uint64(_GAMMA)
        value += np.uint64(derive_key(*parts))
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return value


def seed_global_generators(key: int) -> None:
    """Seed torch's CPU generator, numpy's and Python's, for code that draws from them."""
    torch.default_generator.manual_seed(key & (2**63 - 1))
    np.random.seed(key & 0xFFFFFFFF)
    random.seed(key)


@contextmanager
def preserved_global_generators() -> Iterator[None]:
    """Put the global generators of torch (CPU), numpy and Python back as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def current_epoch() -> int:
    """Return the epoch that a single sample is read for; 0 where none is going on."""
    return _epoch.get()


@contextmanager
def in_epoch(epoch: int) -> Iterator[None]:
    """Let samples that are read one by one, as by torch's `ConcatDataset`, be of this epoch."""
    token = _epoch.set(epoch)
    try:
        yield
    finally:
        _epoch.reset(token)
