"""Checkpoints written while training goes on.

A step waits for a copy of the state in memory, not for the disk: snapshot, then persist
(Mohan et al. 2021, CheckFreq, FAST '21). One save is in flight at the most.
"""

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from deepseek.checkpoint.store import Checkpoint, CheckpointStore


class BackgroundSaver:
    """Writes the checkpoints of a run in a thread of its own.

    The copy stays allocated between saves: a run holds its state twice, the second time on the
    host.

    Args:
        store: where they go.

    Attributes:
        took_s: how long the last one was written for, in seconds.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[Path] | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}
        self.took_s = 0.0

    def save(self, checkpoint: Checkpoint, keep_too: Collection[int] = ()) -> None:
        """Copy the state and return; it is written after the save in flight.

        Raises:
            CheckpointError: the *previous* save failed.
        """
        try:
            self.wait()
        finally:
            copy = replace(
                checkpoint,
                tensors=self._copy(checkpoint),
                state=deepcopy(checkpoint.state),
                own_state=deepcopy(checkpoint.own_state),
            )
            self._in_flight = self._thread.submit(self._write, copy, frozenset(keep_too))

    def _write(self, checkpoint: Checkpoint, keep_too: Collection[int]) -> Path:
        began = perf_counter()
        path = self.store.save(checkpoint, keep_too)
        self.took_s = perf_counter() - began
        return path

    def wait(self) -> Path | None:
        """Wait for the save in flight; return its folder, or `None` if there was none.

        Raises:
            CheckpointError: it failed.
        """
        in_flight, self._in_flight = self._in_flight, None
        return None if in_flight is None else in_flight.result()

    def failed(self) -> bool:
        """Return whether the save in flight has ended with an error. Does not wait."""
        in_flight = self._in_flight
        return in_flight is not None and in_flight.done() and in_flight.exception() is not None

    def close(self) -> None:
        """End the thread, after the save in flight."""
        self._thread.shutdown()
        self._copies.clear()

    def _copy(self, checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
        """Copy every tensor to the host, into the memory of the previous copy where it fits."""
        copied: dict[str, dict[str, Tensor]] = {}
        kept: dict[tuple[str, str], Tensor] = {}
        on_device = False
        for group, tensors in checkpoint.tensors.items():
            for name, tensor in tensors.items():
                host = self._copies.get((group, name))
                if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
                    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                host.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                on_device = on_device or tensor.is_cuda
                kept[group, name] = copied.setdefault(group, {})[name] = host
        if on_device:
            torch.cuda.synchronize()
        self._copies = kept
        return copied
