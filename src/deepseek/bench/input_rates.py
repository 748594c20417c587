"""How fast samples come in and checkpoints go out: the disk, and pictures from JPEG files."""

import os
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from deepseek.bench.result import Rate
from deepseek.datasets import DataLoader, ImageDataset

BLOCK_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2**30
FREE_SHARE = 0.1
"""Of the free room that is filled at most."""
NUM_PICTURES = 64
PICTURE_SIZE = (500, 375)
BATCH_SIZE = 16


def measure_disk(folder: Path, free_bytes: int, seconds: float) -> tuple[Rate, Rate]:
    """Return how fast a file in `folder` is written, to the disk, and read, past the page cache.

    Where the system cannot be asked to forget a file, the second is the memory's rate.

    Args:
        folder: where runs are written.
        free_bytes: of its file system.
        seconds: to spend.
    """
    path = folder / f".deepseek-bench-{os.getpid()}"
    limit = max(BLOCK_BYTES, min(MAX_FILE_BYTES, int(free_bytes * FREE_SHARE)))
    block = np.random.default_rng(0).bytes(BLOCK_BYTES)  # some file systems compress
    try:
        began = perf_counter()
        size = 0
        with path.open("wb", buffering=0) as file:
            while size < limit and perf_counter() - began < seconds / 2:
                file.write(block)
                # each block, so that a full cache does not make the last of them wait for all
                os.fsync(file.fileno())
                size += BLOCK_BYTES
            written_s = perf_counter() - began
            is_dropped = _forget(file.fileno())
        read_bytes, read_s = _read(path, seconds / 2)
    finally:
        path.unlink(missing_ok=True)
    remark = f"{size // 2**20} MiB in {folder}"
    past = "past the page cache" if is_dropped else "perhaps from the page cache"
    return (
        Rate("disk write", size / written_s / 1e6, "MB/s", f"{remark}, flushed"),
        Rate("disk read", read_bytes / read_s / 1e6, "MB/s", f"{remark}, {past}"),
    )


def _read(path: Path, seconds: float) -> tuple[int, float]:
    began = perf_counter()
    num_bytes = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(BLOCK_BYTES):
            num_bytes += len(part)
            if perf_counter() - began > seconds:
                break
    return num_bytes, perf_counter() - began


def _forget(descriptor: int) -> bool:
    """Ask the system to drop a file from its page cache; return whether it can be asked."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    advise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def measure_decoding(folder: Path, seconds: float) -> Rate:
    """Return how many JPEG files a process turns into pictures of 224 pixels in a second.

    Args:
        folder: an empty one for the files.
        seconds: to spend after they are written.
    """
    _write_pictures(folder)
    data = ImageDataset(folder, "resize_224", cache="off")
    loader = DataLoader(data, batch_size=BATCH_SIZE, num_workers=0, shuffle=False)
    best, count = 0.0, 0
    end = perf_counter() + seconds
    began = perf_counter()
    is_warm = False
    while perf_counter() < end or not best:
        for batch in loader:
            now = perf_counter()
            count = len(batch["targets"])
            if is_warm:
                best = max(best, count / (now - began))
            is_warm, began = True, now
            if now >= end and best:
                break
    width, height = PICTURE_SIZE
    remark = f"{width} x {height} to 224 x 224, one process"
    return Rate("JPEG decoding", best, "images/s", remark)


def _write_pictures(folder: Path) -> None:
    """Write smooth random pictures, about as large as those of ImageNet, in two classes."""
    numbers = np.random.default_rng(0)
    for at in range(NUM_PICTURES):
        coarse = numbers.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
        grain = numbers.normal(0, 6, (*PICTURE_SIZE[::-1], 3))
        values = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
        place = folder / f"class_{at % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(values).save(place / f"{at:03}.jpg", quality=90)
