"""The order of samples: a pure function of (seed, epoch, position)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from deepseek.datasets.ramp import Ramp
from deepseek.datasets.randomness import permutation

BATCHES_IN_BUCKET = 50
Lengths = np.ndarray | Callable[[int], np.ndarray] | None


@dataclass
class Progress:
    """How far a loader is: its epoch, and the samples of this epoch that were handed out."""

    epoch: int = 0
    position: int = 0


class Key(NamedTuple):
    """What a batch is made from."""

    epoch: int
    indices: list[int]
    num_samples: int


@dataclass
class BatchKeys(torch.utils.data.Sampler):
    """Yields the key of each batch from `progress` on to the end of its epoch.

    A key is (epoch, indices, samples of the batch over all ranks). The epoch travels with the
    indices: worker processes that outlive an epoch need no word of it.

    Args:
        num_samples: in the data set.
        batch_size: samples in a batch.
        shuffle: a new order each epoch; else the order of the data set.
        drop_last: whether a smaller batch at the end of an epoch is left out.
        seed: of the order.
        progress: read when iteration begins.
        ramp: size of a batch by the number of samples before it, over all epochs.
        share: which part of every batch is taken, and of how many parts.
        lengths: of the samples, where a shuffled batch is made of samples of similar length; a
            function of the epoch where an index stands for another sample in each.
    """

    num_samples: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    progress: Progress = field(default_factory=Progress)
    ramp: Ramp | None = None
    share: tuple[int, int] = (0, 1)
    lengths: Lengths = None

    def __len__(self) -> int:
        return self.count_batches(self.progress.epoch)

    def count_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch, from 0."""
        if self.ramp is None or epoch * self.num_samples >= self.ramp.total:
            return -(-self.num_handed_out // self.batch_size)
        return sum(1 for _ in self._spans(epoch, 0))

    @property
    def num_handed_out(self) -> int:
        """Samples of an epoch that are handed out."""
        whole = self.num_samples - self.num_samples % self.batch_size
        return whole if self.drop_last else self.num_samples

    def __iter__(self) -> Iterator[Key]:
        epoch, position = self.progress.epoch, self.progress.position
        order = epoch_order(self.num_samples, self.seed, epoch, shuffle=self.shuffle)
        if self.shuffle and self.lengths is not None:
            lengths = self.lengths(epoch) if callable(self.lengths) else self.lengths
            order = order_by_length(order, lengths, self.batch_size, self.seed, epoch)
        for start, end in self._spans(epoch, position):
            first, last = share_of(end - start, *self.share)
            yield Key(epoch, order[start + first : start + last].tolist(), end - start)

    def _spans(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        while start < self.num_handed_out:
            size = self.batch_size
            if self.ramp is not None:
                size = self.ramp.value(epoch * self.num_samples + start)
            end = min(start + size, self.num_handed_out)
            yield start, end
            start = end


def epoch_order(num_samples: int, seed: int, epoch: int, *, shuffle: bool) -> np.ndarray:
    """Return the indices (int64) of an epoch, in their order."""
    if not shuffle:
        return np.arange(num_samples)
    return permutation(num_samples, seed, epoch)


def order_by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    """Return an order in which batches hold samples of similar length, and are shuffled.

    Samples are sorted within buckets of `BATCHES_IN_BUCKET` batches. A smaller batch at the end is
    drawn from all lengths: what `drop_last` leaves out is as random as before.

    Args:
        order: random, int64 (N,).
        lengths: of sample 0, 1, ..., (N,).
        batch_size: samples in a batch.
        seed: of the order of the batches.
        epoch: likewise.
    """
    num_whole = len(order) - len(order) % batch_size
    whole, bucket = order[:num_whole].copy(), batch_size * BATCHES_IN_BUCKET
    for start in range(0, num_whole, bucket):
        part = whole[start : start + bucket]
        whole[start : start + bucket] = part[np.argsort(lengths[part], kind="stable")]
    batches = whole.reshape(-1, batch_size)
    shuffled = batches[permutation(len(batches), seed, epoch, 1)]
    return np.concatenate([shuffled.reshape(-1), order[num_whole:]])


def share_of(num_samples: int, part: int, num_parts: int) -> tuple[int, int]:
    """Return where a part of a batch begins and ends; parts differ by one sample at the most."""
    size, rest = divmod(num_samples, num_parts)
    start = part * size + min(part, rest)
    return start, start + size + (part < rest)
