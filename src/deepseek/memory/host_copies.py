"""Saved activations that wait in the memory of the host until the backward pass asks for them.

```
forward    a copy runs on a stream of its own beside what is computed next; the device's memory is
           given up when all of it is there
backward   what is asked for comes back, and what was saved just before it is fetched along with
           it: the backward pass will ask for that next
```
On a CPU, whose memory is the host's, copies are made as they are asked for, and free nothing.

Papers: Rhu et al. 2016 (vDNN), arXiv 1602.08124; Rajbhandari et al. 2021, arXiv 2104.07857.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deepseek.memory.recipe import is_for_recipe

MIN_COPIED_BYTES = 1 << 16
"""Less than this stays: starting a copy takes as long as copying it."""
NUM_AHEAD = 2
"""Copies that are fetched before they are asked for."""
MAX_LEAVING = 4
"""Copies on their way to the host whose memory is still held; the next waits for the oldest."""


class _Pause(threading.local):
    """Whether this thread is where nothing is copied."""

    is_on = False


_pause = _Pause()


@contextmanager
def used_at_once() -> Iterator[None]:
    """Return a context in which nothing is copied: its backward pass follows immediately."""
    before, _pause.is_on = _pause.is_on, True
    try:
        yield
    finally:
        _pause.is_on = before


def can_be_copied(tensor: Tensor) -> bool:
    """Return whether a saved tensor is large and plain enough to wait on the host."""
    if _pause.is_on:
        return False
    if isinstance(tensor, AsyncCollectiveTensor):
        return can_be_copied(tensor.elem)
    if is_traceable_wrapper_subclass(tensor):
        return all(can_be_copied(part) for part in _parts_of(tensor) if isinstance(part, Tensor))
    is_plain = tensor.layout is torch.strided and not (tensor.is_complex() or tensor.is_neg())
    return is_plain and tensor.untyped_storage().nbytes() >= MIN_COPIED_BYTES


def storages_of(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Return the memory behind a tensor on this rank; of a DTensor, of its part."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor.untyped_storage()]
    parts = [part for part in _parts_of(tensor) if isinstance(part, Tensor)]
    return [storage for part in parts for storage in storages_of(part)]


def _parts_of(tensor: Any) -> list[Any]:
    """Return what a tensor is made of: tensors, and what they share, such as a mesh."""
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


class HostCopy:
    """The whole memory behind some saved tensors.

    Args:
        whole: all of it in a row, on the device.
        host: where it goes.
        before: the one that was made before this, which will be asked for after it.

    Attributes:
        device: where it is from.
        value: it, while it is on the device.
        ready: what is waited for before a `value` that came back is read.
        num_uses: operations that have saved it, and have not asked for it yet.
        is_asked_for: whether the backward pass has begun to use it.
    """

    def __init__(self, whole: Tensor, host: Tensor, before: "HostCopy | None") -> None:
        self.device, self.host = whole.device, host
        self.value: Tensor | None = None
        self.ready: torch.cuda.Event | None = None
        self.num_uses = 0
        self.is_asked_for = False
        self._version, self._was_written = whole._version, False
        self._storage = weakref.ref(whole.untyped_storage())
        self._before = None if before is None else weakref.ref(before)

    @property
    def before(self) -> "HostCopy | None":
        """The one that was made before, if it is still needed."""
        return None if self._before is None else self._before()

    def is_of(self, tensor: Tensor) -> bool:
        """Return whether it holds the numbers that `tensor` has now."""
        is_same = self._storage() is tensor.untyped_storage()
        return is_same and self._version == tensor._version

    def look_at(self, whole: Tensor) -> None:
        """Remember whether its memory has been written to before all of it had left."""
        self._was_written |= whole._version != self._version

    def check(self) -> None:
        """Raise as torch does for what it has saved.

        Raises:
            RuntimeError: it was written to while it was copied.
        """
        if self._was_written:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an"
                f" inplace operation while its {self.host.nbytes:,} bytes went to the host"
            )


class Offloaded:
    """Stands for a saved tensor whose memory is on the host.

    Args:
        copies: bring it back.
        copy: of its memory.
        tensor: as it was saved.
    """

    __slots__ = ("_copies", "_copy", "_view")

    def __init__(self, copies: "HostCopies", copy: HostCopy, tensor: Tensor) -> None:
        self._copies, self._copy = copies, copy
        self._view = tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(self) -> Tensor:
        """Bring it back.

        Raises:
            RuntimeError: it was written to while it was copied.
        """
        with torch.no_grad():
            return self._copies.take(self._copy).as_strided(*self._view)


class OffloadedParts:
    """Stands for a tensor that is made of others, such as a DTensor.

    Args:
        parts: by name, those that are tensors offloaded.
        make: the tensor, of its parts.
    """

    __slots__ = ("_make", "_parts")

    def __init__(self, parts: dict[str, Any], make: Callable[[dict[str, Any]], Tensor]) -> None:
        self._parts, self._make = parts, make

    def unpack(self) -> Tensor:
        """Bring it back."""
        kinds = Offloaded, OffloadedParts
        parts = self._parts.items()
        return self._make({n: p.unpack() if isinstance(p, kinds) else p for n, p in parts})


class HostCopies:
    """Takes saved tensors to the host and back; one for a model.

    Args:
        uncounted: entered while memory of the host is made.

    Attributes:
        num_copies: made since `begin`.
        copied_bytes: of them, which is what the host holds at the end of a forward pass.
        num_fetches: copies that came back since `begin`.
    """

    def __init__(self, uncounted: AbstractContextManager | None = None) -> None:
        self.uncounted: AbstractContextManager = uncounted or nullcontext()
        self.num_copies = self.copied_bytes = self.num_fetches = 0
        self._known: WeakValueDictionary[tuple[int, torch.dtype], HostCopy] = WeakValueDictionary()
        self._last: weakref.ref[HostCopy] | None = None
        self._leaving: deque[tuple[HostCopy, Tensor, torch.cuda.Event]] = deque()
        self._coming: set[HostCopy] = set()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def begin(self) -> None:
        """Begin a pass; what an abandoned one has left on its way is waited for."""
        self.num_copies = self.copied_bytes = self.num_fetches = 0
        self._let_go(num_left=0)
        for copy in self._coming:
            self._wait_for(copy)
            copy.value = None
        self._coming.clear()

    # -- to the host -------------------------------------------------------------------------

    def put(self, tensor: Tensor) -> Offloaded | OffloadedParts:
        """Copy a tensor that `can_be_copied`; once for all that share its memory."""
        if isinstance(tensor, AsyncCollectiveTensor):
            tensor = tensor.wait()
        if is_traceable_wrapper_subclass(tensor):
            names, context = tensor.__tensor_flatten__()
            kind, shape, stride = type(tensor), tensor.shape, tensor.stride()
            parts = {
                name: self.put(part) if isinstance(part, Tensor) else part
                for name, part in zip(names, _parts_of(tensor), strict=True)
            }
            return OffloadedParts(
                parts, lambda made: kind.__tensor_unflatten__(made, context, shape, stride)
            )
        key = tensor.untyped_storage()._cdata, tensor.dtype
        copy = self._known.get(key)
        if copy is None or not copy.is_of(tensor):
            copy = self._known[key] = self._send(tensor.detach())
        copy.num_uses += 1
        return Offloaded(self, copy, tensor)

    def _send(self, tensor: Tensor) -> HostCopy:
        num = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = tensor.as_strided((num,), (1,), 0)
        is_cuda = whole.device.type == "cuda"
        with self.uncounted:
            host = torch.empty_like(whole, device="cpu", pin_memory=is_cuda)
        copy = HostCopy(whole, host, None if self._last is None else self._last())
        self._last = weakref.ref(copy)
        self.num_copies += 1
        self.copied_bytes += whole.nbytes
        if not is_cuda:
            host.copy_(whole)
            return copy
        self._let_go(num_left=MAX_LEAVING - 1)
        copy.value = whole
        self._leaving.append((copy, whole, self._beside(host, whole)))
        return copy

    def _let_go(self, num_left: int) -> None:
        """Give up the memory of what has arrived; more than `num_left` are waited for."""
        while self._leaving:
            copy, whole, event = self._leaving[0]
            if len(self._leaving) > num_left:
                torch.cuda.current_stream(whole.device).wait_event(event)
            elif not event.query():
                return
            copy.look_at(whole)
            if not copy.is_asked_for:
                copy.value = None
            self._leaving.popleft()

    # -- and back ----------------------------------------------------------------------------

    def take(self, copy: HostCopy) -> Tensor:
        """Return the memory behind a saved tensor in a row, on its device.

        It stays there until the last of the operations that have saved it has asked; a recipe,
        which asks for another tensor's sake, does not count.

        Raises:
            RuntimeError: it was written to while it was copied.
        """
        copy.is_asked_for = True
        self._let_go(num_left=MAX_LEAVING)
        for leaving, whole, _ in self._leaving:
            if leaving is copy:
                copy.look_at(whole)
        copy.check()
        value = self._fetch(copy)
        self._wait_for(copy)
        self._fetch_before(copy)
        if not is_for_recipe():
            copy.num_uses -= 1
        if copy.num_uses <= 0:
            copy.value = None
        return value

    def _fetch_before(self, copy: HostCopy) -> None:
        for _ in range(NUM_AHEAD):
            before = copy.before
            if before is None:
                return
            if before.num_uses > 0:
                self._fetch(before)
            copy = before

    def _fetch(self, copy: HostCopy) -> Tensor:
        """Return its memory on the device, which may still be on its way there."""
        if copy.value is None:
            # memory of the stream that computes: what it has freed before is free for it
            copy.value = torch.empty_like(copy.host, device=copy.device)
            self.num_fetches += 1
            if copy.device.type == "cuda":
                copy.ready = self._beside(copy.value, copy.host)
                self._coming.add(copy)
            else:
                copy.value.copy_(copy.host)
        return copy.value

    def _wait_for(self, copy: HostCopy) -> None:
        self._coming.discard(copy)
        if copy.ready is not None:
            torch.cuda.current_stream(copy.device).wait_event(copy.ready)
            copy.ready = None

    def _beside(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        """Copy on a stream of its own, after what has been enqueued so far."""
        device = target.device if target.device.type == "cuda" else source.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side = self._streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            target.copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record(side)
        return event
