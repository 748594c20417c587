"""Pictures, texts and volumes of strangers are read in processes of their own, with limits.

What takes too long or too much memory ends its process, and no other: the pool is made anew, and
what else was being read is read again.
"""

import asyncio
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from deepseek.datasets import DataSpec
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.volumes import (
    VOXEL_BYTES,
    Mask,
    PreparedScan,
    import_readers,
    make_mask,
    needs_folder,
    open_scan,
)
from deepseek.errors import DeepSeekError
from deepseek.models.prediction import decode_picture
from deepseek.models.text_batches import encode_texts, locate_words
from deepseek.models.volume_detector import finds_centers
from deepseek.models.volume_segmenter import takes_volumes

T = TypeVar("T")
MAX_BYTES = 1 << 30
"""Memory that a process may add to what it has after its start; more where it reads volumes."""
MEMORY_FOLDER = "/dev/shm"
_spec: DataSpec | None = None
_seconds = 0.0
_bytes = MAX_BYTES


class _TooMuch(str):
    """A refusal for the size of what was sent."""


class Decoder:
    """Turns the bytes of pictures and volumes, or texts, into what a model takes.

    Args:
        spec: of the model: how its pictures, texts or volumes are prepared.
        num_processes: that decode at a time.
        max_pixels: of a picture.
        max_voxels: of a volume, as it is sent and as the model takes it.
        timeout_s: for one picture or volume, or the texts of one request.
        region: of volumes, where there is something to look for; `None`: everywhere.
    """

    def __init__(
        self, spec: DataSpec, *, num_processes: int, max_pixels: int, max_voxels: int,
        timeout_s: float, region: str | None = None,
    ) -> None:  # fmt: skip
        self._region = region
        self._spec, self._num_processes = spec, num_processes
        self._max_pixels, self._max_voxels, self._timeout_s = max_pixels, max_voxels, timeout_s
        self._of_volumes = takes_volumes(spec) or finds_centers(spec)
        self._max_bytes = MAX_BYTES + self._of_volumes * VOXEL_BYTES * max_voxels
        self._pool: ProcessPoolExecutor | None = None
        self._alone = asyncio.Semaphore(num_processes)

    def start(self) -> None:
        """Start the processes, so that the first who asks does not wait for them."""
        self._pool = self._pool or self._new_pool(self._num_processes)
        for _ in range(self._num_processes):
            self._pool.submit(_data_bytes)

    async def decode(self, content: bytes) -> np.ndarray:
        """Return a picture as uint8 (C, H, W).

        Raises:
            Refusal: 400, it is no picture, or a damaged or too large one; 422, it ended the
                process that decoded it.
        """
        fix = f"send a JPEG, PNG or WebP picture of {self._max_pixels:,} pixels at most"
        return await self._run("the picture", 400, fix, _decode, content, self._max_pixels)

    async def encode(self, texts: list[str]) -> np.ndarray:
        """Return texts as tokens (B, T), int64, filled up to the longest.

        Raises:
            Refusal: 422, they cannot be encoded, or ended the process that did it.
        """
        return await self._run("the texts", 422, "send other texts", _encode, texts)

    async def locate(self, texts: list[str]) -> list[np.ndarray]:
        """Return the words of each text, int64 (N, 3): first token, start and end in the text.

        Raises:
            Refusal: 422, they cannot be encoded, or ended the process that did it.
        """
        return await self._run("the texts", 422, "send other texts", _locate, texts)

    async def open_scan(self, content: bytes) -> PreparedScan:
        """Return the volume in the bytes of a file, prepared for the model.

        Raises:
            Refusal: 400, it is no volume, or a damaged or too large one; 422, it ended the process
                that read it.
        """
        folder = ""
        if needs_folder(content):  # removed here: the process that reads it may be ended
            room = len(content) + 4 * self._max_voxels
            folder = tempfile.mkdtemp(prefix="deepseek-scan-", dir=_memory_folder(room))
        fix = "send a .nii.gz or .mha file, or a zip of one DICOM series, as in training, of"
        fix += f" {self._max_voxels:,} voxels at most"
        try:
            return await self._run(
                "the volume", 400, fix, _open_scan, content, self._max_voxels, folder, self._region
            )
        finally:
            if folder:
                _remove(folder)

    async def make_mask(self, labels: np.ndarray, scan: PreparedScan) -> Mask:
        """Return the mask of the labels (D, H, W) of a prepared volume, on the voxels of the scan.

        Raises:
            Refusal: 422, it ended the process that made it.
        """
        known = replace(scan, voxels=np.empty(0, np.float32))
        return await self._run("the mask", 422, "send a smaller volume", _make_mask, labels, known)

    async def _run(
        self, what: str, status: int, fix: str, act: Callable[..., T | str], *arguments: object
    ) -> T:
        """Return what `act` makes in a process of the pool; a text is a refusal."""
        pool = self._pool = self._pool or self._new_pool(self._num_processes)
        try:
            found = await asyncio.wrap_future(pool.submit(act, *arguments))
        except BrokenProcessPool:  # by this one, or by another beside or before it
            if self._pool is pool:
                self._pool = None
                pool.shutdown(wait=False, cancel_futures=True)
            found = await self._run_alone(what, act, *arguments)
        if isinstance(found, str):
            raise Refusal(status, found, fix="send less" if isinstance(found, _TooMuch) else fix)
        return found

    async def _run_alone(
        self, what: str, act: Callable[..., T | str], *arguments: object
    ) -> T | str:
        """Return what `act` makes in a process that is for nothing else: no other one ends it."""
        async with self._alone:
            pool = self._new_pool(1)
            try:
                return await asyncio.wrap_future(pool.submit(act, *arguments))
            except BrokenProcessPool:
                raise Refusal(
                    422,
                    f"{what} could not be read within {self._timeout_s:g} s, or ended its process",
                    fix="send it again when the service is less busy; if that does not help, send"
                    " another",
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the processes, once they are done."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def _new_pool(self, num_processes: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # a process that was ended is back at once
        return ProcessPoolExecutor(
            num_processes,
            mp_context=context,
            initializer=_begin,
            initargs=(
                self._spec, self._timeout_s, self._max_bytes, self._of_volumes, self._region,
            ),
        )  # fmt: skip


def _begin(
    spec: DataSpec, timeout_s: float, max_bytes: int, of_volumes: bool, region: str | None
) -> None:
    global _spec, _seconds, _bytes  # of a process that does nothing else
    _spec, _seconds, _bytes = spec, timeout_s, max_bytes
    threading.Thread(target=_end_with_service, daemon=True).start()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service ends it
    if of_volumes:  # in the time of a request it might end the process, which began anew for ever
        import_readers(region)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever it is at
    now = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (now + max_bytes, now + max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_service() -> None:
    """End this process with the service, however that ends: nobody else would tell it."""
    service = multiprocessing.parent_process()
    if service is not None:
        service.join()
        os._exit(1)


def _data_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _decode(content: bytes, max_pixels: int) -> np.ndarray | str:
    """Return the pixels, or what is wrong: an error of ours might not survive the way back."""
    return _limited(lambda spec: decode_picture(content, "the picture", spec, max_pixels).numpy())


def _encode(texts: list[str]) -> np.ndarray | str:
    """Return the tokens, or what is wrong."""
    return _limited(lambda spec: next(encode_texts(texts, spec, len(texts))).numpy())


def _locate(texts: list[str]) -> list[np.ndarray] | str:
    """Return the words of texts, or what is wrong."""
    return _limited(lambda spec: [locate_words(text, spec) for text in texts])


def _memory_folder(num_bytes: int) -> str | None:
    """Return a folder in memory, where the system has one with room: scans stay off the disk.

    That of a container has 64 MiB, if nobody has asked for more.
    """
    if not os.access(MEMORY_FOLDER, os.W_OK):
        return None
    return MEMORY_FOLDER if shutil.disk_usage(MEMORY_FOLDER).free >= num_bytes else None


def _remove(folder: str) -> None:
    """Remove a folder that a process may still unpack into: under another name it gets no more."""
    gone = f"{folder}-gone"
    with suppress(OSError):
        os.rename(folder, gone)
    for each in (gone, folder):
        shutil.rmtree(each, ignore_errors=True)


def _open_scan(
    content: bytes, max_voxels: int, folder: str, region: str | None
) -> PreparedScan | str:
    """Return a volume, or what is wrong."""
    if folder:  # what a try that was ended has left
        for file in Path(folder).iterdir():
            file.unlink()
    return _limited(lambda spec: open_scan(content, spec, max_voxels, folder, region))


def _make_mask(labels: np.ndarray, scan: PreparedScan) -> Mask | str:
    """Return a mask, or what is wrong."""
    return _limited(lambda spec: make_mask(labels, scan, spec))


def _limited(act: Callable[[DataSpec], T]) -> T | str:
    if _spec is None:
        return "the process has not been told how samples are prepared"
    signal.setitimer(signal.ITIMER_REAL, _seconds)
    try:
        return act(_spec)
    except DeepSeekError as error:
        return error.message
    except MemoryError:
        return _TooMuch(f"it needs more than {_bytes >> 20} MiB")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
