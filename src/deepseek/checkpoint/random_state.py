"""Every random state that training may draw from: torch, its GPU, Python and numpy."""

import base64
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import CheckpointError


@dataclass(frozen=True)
class RandomState:
    """The global generators at one moment.

    `cuda` holds that of the GPU that this process computes on; nothing in a run on the CPU, which
    leaves a GPU that is there alone.
    """

    torch: Tensor
    cuda: tuple[Tensor, ...]
    python: tuple
    numpy: tuple

    @classmethod
    def read(cls, host: "RandomState | None" = None) -> "RandomState":
        """Return the states as they are now.

        Args:
            host: take Python's and numpy's from here instead: reading them costs 50 us, the
                others 2.
        """
        return cls(
            torch.get_rng_state(),
            (torch.cuda.get_rng_state(),) if torch.cuda.is_initialized() else (),
            random.getstate() if host is None else host.python,
            np.random.get_state(legacy=True) if host is None else host.numpy,  # type: ignore[arg-type]
        )

    def restore(self) -> None:
        """Put the generators back; that of a GPU where this process computes on one."""
        torch.set_rng_state(self.torch)
        if self.cuda and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(self.cuda[0])
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def has_same_host(self, other: "RandomState") -> bool:
        """Return whether Python's and numpy's generators stand where they stood."""
        return self.python == other.python and all(
            np.array_equal(mine, theirs)
            for mine, theirs in zip(self.numpy, other.numpy, strict=True)
        )

    def to_json(self) -> dict:
        """Return the states as JSON."""
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached = self.numpy
        return {
            "torch": _encode(self.torch),
            "cuda": [_encode(state) for state in self.cuda],
            "python": [version, list(words), gauss],
            "numpy": [
                name,
                np.asarray(keys).tolist(),
                int(position),
                int(has_gauss),
                float(cached),
            ],
        }

    @classmethod
    def from_json(cls, state: dict) -> "RandomState":
        """Return what `to_json` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            version, words, gauss = state["python"]
            name, keys, position, has_gauss, cached = state["numpy"]
            return cls(
                _decode(state["torch"]),
                tuple(_decode(text) for text in state["cuda"]),
                (version, tuple(words), gauss),
                (name, np.array(keys, dtype=np.uint32), position, has_gauss, cached),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the random state cannot be read: {error!r}", fix="use an older checkpoint"
            ) from error


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
