"""What is allocated, by role: a log of every storage from its making to its end.

What a tensor turns out to be is often known only afterwards (that this sum became the gradient of
a weight), so roles are given at any time, and the peak is read from the log at the end.
"""

import weakref
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

from deepseek.memory.kernels import KERNELS

ACTIVATIONS = "activations"
LOGITS = "logits"
WEIGHTS = "weights"
BUFFERS = "buffers"
"""Weights in another form: gathered, cast; and gradients that are not reduced yet."""
_GATHERING = {"_allgather_base_", "_reduce_scatter_base_"}


class _Storage(NamedTuple):
    number: int
    reference: weakref.ref


class _Pause:
    """Is on while it is entered; any number of times, one after the other."""

    def __init__(self) -> None:
        self.is_on = False

    def __enter__(self) -> None:
        self.is_on = True

    def __exit__(self, *error: object) -> None:
        self.is_on = False


class Allocations(TorchDispatchMode):
    """Counts the storages that are made inside, until they are gone.

    Args:
        counts_kernels: add what kernels of a CPU take for themselves while they run.

    Attributes:
        alive_bytes: now.
        peak_bytes: most at any time.
        logits_numel: numbers of the model's output; what has as many is of the role `logits`.
        pause: a context in which nothing is counted.
    """

    def __init__(self, *, counts_kernels: bool = True) -> None:
        super().__init__()
        self._counts_kernels = counts_kernels
        self.alive_bytes = self.peak_bytes = 0
        self.logits_numel = 0
        self.pause = _Pause()
        self._known: dict[int, _Storage] = {}
        self._log: list[tuple[int, int]] = []
        self._roles: list[str] = []
        self._sizes: list[int] = []
        self._resized: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(is_traceable_wrapper_subclass_type(each) for each in types):
            return NotImplemented  # what is inside comes by again
        if self.pause.is_on:
            return func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        given = {tensor.untyped_storage()._cdata for tensor in tensors}
        result = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in given:
                is_logits = tensor.numel() == self.logits_numel > 0
                self._note(tensor.untyped_storage(), LOGITS if is_logits else ACTIVATIONS)
        self._look_at_weights(func, tensors, made)
        if self._counts_kernels and func.overloadpacket in KERNELS:
            self._pass_by(KERNELS[func.overloadpacket](tensors))
        return result

    def hold(self, tensors: Iterable[Tensor], role: str) -> None:
        """Give tensors a role; what was made outside is counted from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._note(storage, role)
            self._roles[self._known[storage._cdata].number] = role

    def alive_of(self, role: str) -> int:
        """Return the bytes of a role that are there now."""
        return sum(size for size, own in zip(self._sizes, self._roles, strict=True) if own == role)

    def at_peak(self, from_start: Collection[str] = ()) -> dict[str, int]:
        """Return the bytes of each role where their sum is largest.

        Args:
            from_start: roles that are counted as if they had been there all the time.
        """
        now: Counter[str] = Counter()
        for number, size in enumerate(self._sizes):
            if self._roles[number] in from_start:
                now[self._roles[number]] += size
        total = most = now.total()
        peak = dict(now)
        for number, change in self._log:
            role = self._roles[number]
            if role not in from_start:
                now[role] += change
                total += change
                if total > most:
                    most, peak = total, dict(now)
        return peak

    # -- the log -----------------------------------------------------------------------------

    def _note(self, storage: torch.UntypedStorage, role: str) -> None:
        key = storage._cdata
        if key in self._known:
            return
        number = len(self._sizes)
        self._roles.append(role)
        self._sizes.append(0)

        def gone(reference: object, key: int = key, number: int = number) -> None:
            self._known.pop(key, None)
            self._resized.discard(key)
            self._change(number, 0)

        self._known[key] = _Storage(number, weakref.ref(storage, gone))
        self._change(number, storage.nbytes())

    def _pass_by(self, size: int) -> None:
        """Count bytes that are there for a moment."""
        number = len(self._sizes)
        self._roles.append(ACTIVATIONS)
        self._sizes.append(0)
        self._change(number, size)
        self._change(number, 0)

    def _change(self, number: int, size: int) -> None:
        change = size - self._sizes[number]
        self._sizes[number] = size
        self._log.append((number, change))
        self.alive_bytes += change
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    # -- weights in another form -------------------------------------------------------------

    def _look_at_weights(self, func, tensors: list[Tensor], made: list[Tensor]) -> None:
        name = func.__name__.partition(".")[0]
        if func.namespace == "fsdp" or (func.namespace == "c10d" and name in _GATHERING):
            for tensor in (*tensors, *made):
                self._rename(tensor)
                # FSDP frees what it gathered by making the storage empty
                self._resized.add(tensor.untyped_storage()._cdata)
        elif tensors and name == "_to_copy" and self._role(tensors[0]) in (WEIGHTS, BUFFERS):
            for tensor in made:  # a cast of autocast's
                self._rename(tensor)
        for key in tuple(self._resized):
            known = self._known.get(key)
            if known is None or (storage := known.reference()) is None:
                continue
            if (size := storage.nbytes()) != self._sizes[known.number]:
                self._change(known.number, size)

    def _role(self, tensor: Tensor) -> str:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return ACTIVATIONS if known is None else self._roles[known.number]

    def _rename(self, tensor: Tensor) -> None:
        self._note(tensor.untyped_storage(), BUFFERS)
        number = self._known[tensor.untyped_storage()._cdata].number
        if self._roles[number] == ACTIVATIONS:
            self._roles[number] = BUFFERS
