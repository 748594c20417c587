"""The state at the last step boundary, while a step is under way.

A step changes a few things before its update: buffers such as running statistics, the random
generators, the position in the data. They are kept here, so that a step can be abandoned as if it
had never begun: for a signal, for a batch that does not fit into memory, for a loss that is NaN.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from deepseek.checkpoint import RandomState
from deepseek.datasets import DataLoader

SMALL_NUMEL = 1 << 16


class Boundary:
    """Keeps what a step may change before its update.

    Args:
        buffers: of the model, by name; copied at each `open`.
        loader: the training data.

    Attributes:
        is_open: whether a step or an evaluation is under way.
        random: the generators at the boundary.
        data: the loader's state at the boundary.
    """

    def __init__(self, buffers: Mapping[str, Tensor], loader: DataLoader) -> None:
        self._loader = loader
        self._buffers = dict(buffers)
        self._kept = {name: buffer.clone() for name, buffer in self._buffers.items()}
        # A mask of 2048 x 2048 is not copied at every step: torch counts the writes to a tensor.
        # (Not those of a batch norm, whose buffers are small.)
        self._versions = {
            name: buffer._version if buffer.numel() > SMALL_NUMEL else -1
            for name, buffer in self._buffers.items()
        }
        self._num_steps = 0
        self._draws_on_host = True
        self.random = RandomState.read()
        self.data = loader.state_dict()
        self.is_open = False

    def open(self, is_step: bool) -> None:
        """Keep the state as it is now.

        Args:
            is_step: whether a step begins, and not an evaluation. From the third step on, Python's
                and numpy's generators are read only if the first steps drew from them.
        """
        changed = self._changed()
        self._copy(self._kept, self._buffers, changed)
        for name in changed:
            if self._versions[name] >= 0:
                self._versions[name] = self._buffers[name]._version
        before = self.random
        reads_host = not is_step or self._draws_on_host
        self.random = RandomState.read(None if reads_host else before)
        if is_step:
            self._num_steps += 1
            if self._num_steps == 2:
                self._draws_on_host = not self.random.has_same_host(before)
        self.data = self._loader.state_dict()
        self.is_open = True

    def _changed(self) -> list[str]:
        versions = self._versions
        return [name for name, buffer in self._buffers.items() if buffer._version != versions[name]]

    def close(self) -> None:
        """The step or the evaluation has been taken into account: it cannot be abandoned now."""
        self.is_open = False

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers at the boundary, by name."""
        return self._kept if self.is_open else self._buffers

    def running_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Return the small floating-point buffers, and as they were at the boundary."""
        return [
            (buffer, self._kept[name])
            for name, buffer in self._buffers.items()
            if self._versions[name] < 0 and buffer.is_floating_point()
        ]

    def rewind_buffers(self) -> None:
        """Put the buffers back: a batch that is skipped leaves no trace in running statistics."""
        self._copy(self._buffers, self._kept, self._changed())

    def rewind(self) -> None:
        """Put buffers and random generators back, for a step that is tried again."""
        self.rewind_buffers()
        self.random.restore()

    def _copy(self, into: dict[str, Tensor], source: dict[str, Tensor], names: list[str]) -> None:
        if names:
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [into[n] for n in names], [source[n] for n in names]
            )
