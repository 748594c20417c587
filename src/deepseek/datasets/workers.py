"""Worker processes that prepare batches: watched, restarted once, named when they fail again.

A worker that was killed (most often for lack of memory) or hangs is replaced, and the batch that
was waited for begun anew; nothing is lost, for a batch depends on its key alone. If the same batch
fails a second time, the error names the sample that the worker was reading.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data._utils import signal_handling
from torch.utils.data._utils.pin_memory import pin_memory

from deepseek.datasets.host_memory import keep_freed_memory
from deepseek.datasets.sampler import BatchKeys
from deepseek.errors import DataError, DeepSeekError

POLL_S = 1.0
SETTLE_S = 0.5
RESUME_S = 30.0
"""How long workers may take to go on with the next epoch: they may be busy with the last one."""
_FAILURES = ("exited unexpectedly", "killed by signal")
_slot: Tensor | None = None  # in a worker: where the number of the sample it reads is written


class Fetched(NamedTuple):
    """What a worker sends: a batch and what it used up, or the error."""

    batch: dict[str, Tensor]
    num_samples: int
    bad: list[tuple[int, str]]
    error: DeepSeekError | None = None

    def pin_memory(self) -> "Fetched":
        """Return it in pinned memory, but for what is on a GPU already; torch calls this."""
        pinned = {
            name: value if isinstance(value, Tensor) and value.is_cuda else pin_memory(value)
            for name, value in self.batch.items()
        }
        return self._replace(batch=pinned)


def note_sample(index: int) -> None:
    """Tell the main process which sample this worker begins to read."""
    if _slot is not None:
        _slot.fill_(index)


class Workers:
    """Fetches batches, in worker processes or in this one.

    Args:
        fetch: key -> batch; goes to the workers.
        keys: the order; begins at the loader's progress.
        num_workers: processes; 0: none.
        prefetch_batches: batches that each prepares ahead.
        timeout_s: a batch that takes longer counts as hanging; 0: never.
        seed: of torch's own generator.
    """

    def __init__(
        self,
        fetch: torch.utils.data.Dataset,
        keys: BatchKeys,
        *,
        num_workers: int,
        prefetch_batches: int,
        timeout_s: float,
        seed: int,
    ) -> None:
        self._fetch = fetch
        self._keys = keys
        self._num_workers = num_workers
        self._prefetch_batches = prefetch_batches
        self._timeout_s = timeout_s
        self._seed = seed
        self._loader: torch.utils.data.DataLoader | None = None
        self._reading = torch.full((num_workers,), -1, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Fetched]:
        """Yield what is fetched, from the loader's progress to the end of its epoch.

        Raises:
            DataError: a worker died or hung twice at the same batch.
        """
        failed_at = None
        waited_s = 0.0
        fetches = self._begin()
        while True:
            try:
                fetched = next(fetches, None)
            except (RuntimeError, OSError, EOFError) as error:
                # torch looks after its workers only when it stops waiting, so it stops often
                if "timed out after" in str(error):
                    waited_s += POLL_S
                    if not self._timeout_s or waited_s < self._timeout_s:
                        continue
                elif not self._has_failed(error):
                    raise
                explained = self._explain(error)
                self.close()
                place = (self._keys.progress.epoch, self._keys.progress.position)
                if failed_at == place:
                    raise explained from error
                failed_at = place
                warnings.warn(f"{explained.message}; the workers are restarted", stacklevel=2)
                fetches, waited_s = self._begin(), 0.0
                continue
            if fetched is None:
                return
            waited_s = 0.0
            yield fetched

    def pids(self) -> list[int]:
        """Return the process numbers of the workers that live now."""
        return [worker.pid for worker in self._processes() if worker.is_alive()]

    def close(self) -> None:
        """End the workers, also those that hang."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            _end_pinning(iterator)
            for worker in self._processes():
                worker.kill()
                worker.join()
            # torch's own shutdown would wait for ever for a lock that a killed worker held
            iterator._shutdown = True
            signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
            iterator._worker_pids_set = False
        self._loader = None

    def _begin(self) -> Iterator[Fetched]:
        """Begin an epoch, with the workers of the last one if they answer."""
        is_reused = self._loader is not None
        try:
            if not all(worker.is_alive() for worker in self._processes()):
                raise RuntimeError("one has exited unexpectedly")
            return self._start()
        except (RuntimeError, OSError, EOFError) as error:
            # torch asks them to go on, and waits: one may have died, or be busy with a batch of an
            # epoch that was broken off
            if not is_reused or not ("timed out after" in str(error) or self._has_failed(error)):
                raise
            self.close()
            warnings.warn(
                f"the workers of the loader do not go on: {error}; they are restarted", stacklevel=2
            )
        return self._start()

    def _start(self) -> Iterator[Fetched]:
        """Begin an epoch, with new workers where there are none."""
        if self._loader is None:
            keep_freed_memory()
            self._loader = torch.utils.data.DataLoader(
                self._fetch,
                batch_sampler=self._keys,  # pyright: ignore[reportArgumentType]
                num_workers=self._num_workers,
                collate_fn=_as_is,  # pyright: ignore[reportArgumentType]
                # where this process computes on a GPU: in a run on the CPU it would open the GPU
                pin_memory=torch.cuda.is_initialized(),
                prefetch_factor=self._prefetch_batches if self._num_workers else None,
                persistent_workers=self._num_workers > 0,
                timeout=POLL_S if self._num_workers else 0,
                worker_init_fn=_Begin(self._reading),
                # Its own: torch would draw a base seed from the global generator at each epoch.
                generator=torch.Generator().manual_seed(self._seed),
            )
        # torch's handler would raise wherever the main thread is, in the midst of an update; a dead
        # worker is noticed here, when its batch is waited for
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._timeout = RESUME_S
        try:
            return iter(self._loader)
        finally:
            if iterator is not None:
                iterator._timeout = POLL_S
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler)

    def _has_failed(self, error: Exception) -> bool:
        if isinstance(error, RuntimeError):
            return any(words in str(error) for words in _FAILURES)
        for worker in self._processes():  # a batch whose memory went with its worker
            worker.join(SETTLE_S)
            if not worker.is_alive():
                return True
        return False

    def _processes(self) -> list:
        return getattr(getattr(self._loader, "_iterator", None), "_workers", [])

    def _explain(self, error: Exception) -> DataError:
        key = next(iter(self._keys), None)
        awaited = set(key.indices) if key is not None else set()
        processes = self._processes()
        hangs = "timed out" in str(error)
        suspects = [
            int(self._reading[number])
            for number, worker in enumerate(processes)
            if int(self._reading[number]) >= 0
            and (int(self._reading[number]) in awaited if hangs else not worker.is_alive())
        ]
        what = f"hung for {self._timeout_s:g} s" if hangs else "died"
        where = f"reading sample {suspects[0]}" if suspects else "before its first sample"
        return DataError(
            f"a worker process of the loader {what} {where}, in epoch"
            f" {self._keys.progress.epoch}: {error}",
            fix="look at that sample and its storage, or raise worker_timeout_s"
            if hangs
            else "most often memory ran out (lower num_workers or batch_size), /dev/shm is too"
            " small (docker run --shm-size), or a transform crashed the interpreter"
            " (num_workers=0 shows where)",
        )


class _Begin:
    """Gives a worker its place in the shared row of sample numbers, and ends it with its run."""

    def __init__(self, reading: Tensor) -> None:
        self._reading = reading

    def __call__(self, worker_id: int) -> None:
        global _slot
        _slot = self._reading[worker_id]
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; torch looks while a worker is idle."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


def _end_pinning(iterator) -> None:
    """End the thread that puts batches into pinned memory, if there is one.

    Before its workers: from those that are gone it could not take what they have sent.
    """
    if not iterator._pin_memory:
        return
    iterator._pin_memory_thread_done_event.set()
    sent = iterator._worker_result_queue
    # a worker that was killed may hold the lock of the queue for ever
    sent.cancel_join_thread()
    sent.put((None, None))
    iterator._pin_memory_thread.join(timeout=10 * SETTLE_S)  # it ends when it has heard


def _as_is(fetched: Fetched) -> Fetched:
    return fetched
