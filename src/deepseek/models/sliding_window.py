"""A model over volumes larger than what it takes at a time: window by window, blended.

Where windows overlap, outputs are means with the weights of a Gaussian around the middle of each
window, whose standard deviation is an eighth of its size (Isensee et al. 2021, nnU-Net, doi
10.1038/s41592-020-01008-z). Without a mask the result is that of MONAI's
`sliding_window_inference`, to rounding. Departures: sums are kept of as many slices only as a
window is deep, and what is done is handed on (`finish`), so that memory does not grow with volume
times outputs; windows in which there is nothing to look for are not computed.

Shapes: B volumes, C channels, K outputs; `sizes` are those of a volume: depth, height, width, or
any other number of axes. D is the first of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, combinations, product
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from deepseek.errors import ConfigError

DEFAULT_OVERLAP = 0.25
SIGMA = 1 / 8
"""Standard deviation of the weights, in sizes of the window."""
LEAST_WEIGHT = 1e-3
Start = tuple[int, ...]


class SlidingWindow:
    """Applies a module, or any function of a batch of windows, to whole volumes.

    Gradients are not computed; whether a module is in `eval` is the caller's.

    Args:
        forward: from windows (N, C, *window) to outputs (N, K, *window).
        window: its size along each axis.
        overlap: of neighbouring windows, in sizes of a window, 0 <= overlap < 1.
        batch_size: windows computed at a time.
        flips: axes of a volume, 0 for D; outputs are means over all ways to mirror them.
        compute_dtype: of autocast, such as `torch.bfloat16`; `None`: as the module is.
        compiles: compile `forward`, for batches of one shape: the last one is filled up.
        sum_dtype: what outputs are summed in; they are as many as K times a window's slices.
        device: that `forward` computes on; that of the volumes by default.
        store: device of the sums; that of `forward` by default, the CPU where K is large.

    Raises:
        ConfigError: an argument is out of its range.

    Example:
        >>> double = SlidingWindow(lambda windows: 2 * windows, window=(4, 4, 4))
        >>> bool((double(torch.ones(1, 1, 9, 4, 5)) == 2).all())
        True
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        window: Sequence[int],
        *,
        overlap: float = DEFAULT_OVERLAP,
        batch_size: int = 4,
        flips: Sequence[int] = (),
        compute_dtype: torch.dtype | None = None,
        compiles: bool = False,
        sum_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        store: torch.device | str | None = None,
    ) -> None:
        _check_arguments(window, overlap, batch_size, flips)
        self.window = tuple(window)
        self.batch_size = batch_size
        self._steps = [max(1, int(size * (1 - overlap))) for size in window]
        self._compute_dtype, self._compiles, self._sum_dtype = compute_dtype, compiles, sum_dtype
        self._forward = torch.compile(forward, dynamic=False) if compiles else forward
        self._calls = 2 ** len(flips)
        self._mean = mirrored(self._call, flips, sum_dtype)
        self._device, self._store = device, store

    @torch.no_grad()
    def __call__(
        self,
        volumes: Float[Tensor, "B C *sizes"],
        masks: Bool[Tensor, "B *sizes"] | None = None,
        *,
        finish: Callable[[Tensor], Tensor] = lambda outputs: outputs,
        fill: float = 0.0,
        on_windows: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """Return the outputs for every voxel, (B, K, *sizes), where the volumes are.

        A volume smaller than a window is computed with zeros around it.

        Args:
            volumes: as the module takes them.
            masks: where there is something to look for. Windows are laid over the box around it,
                and those without any of it are left out.
            finish: from outputs (K, d, ...) of some slices of a volume to what is kept of them,
                (..., d, ...), such as `lambda logits: logits.argmax(0)`.
            fill: outputs where no window was computed.
            on_windows: told how many windows are done, and of how many, after each batch.

        Raises:
            ConfigError: the volumes, masks or outputs have other axes than the window; the module
                cannot be compiled.
        """
        sizes = self._check_shapes(volumes, masks)
        padded, before = self._pad(volumes)
        there = None if masks is None else self._pad(masks)[0].cpu()
        places = self.place(padded.shape[2:], there, len(volumes))
        flat = [(number, start) for number, starts in enumerate(places) for start in starts]
        # of volumes without anything to look for one window tells how many outputs there are
        outputs = self._outputs(padded, flat or [(0, (0,) * len(sizes))], on_windows)
        first = next(outputs)
        outputs = chain([first], outputs)
        kept = _Kept((len(volumes), *padded.shape[2:]), finish, volumes.device)
        weights = _weights(self.window, self._sum_dtype, self._store or first.device)
        for number, starts in enumerate(places):
            sums = _Sums(len(first), padded.shape[3:], weights, fill)
            for start in starts:
                kept.write(number, sums.take(start[0]))
                sums.add(start[1:], next(outputs))
            kept.write(number, sums.take(padded.shape[2]))
        inside = (slice(at, at + size) for at, size in zip(before, sizes, strict=True))
        return kept.result[(..., *inside)]

    def place(self, sizes: Sequence[int], masks: Tensor | None, count: int) -> list[list[Start]]:
        """Return the first voxel of each window, for each of `count` volumes, ascending in D.

        Args:
            sizes: of a volume, none smaller than the window.
            masks: as in `__call__`, of these sizes.
            count: of the volumes.
        """
        whole = [(0, size) for size in sizes]
        found = []
        for number in range(count):
            box = whole if masks is None else _box(masks[number])
            if box is None:
                found.append([])
                continue
            axes = [
                _starts(*side, size, extent, step)
                for side, size, extent, step in zip(
                    box, sizes, self.window, self._steps, strict=True
                )
            ]
            starts = list(product(*axes))
            if masks is not None:
                starts = [s for s in starts if masks[number][self._slices(s)].any()]
            found.append(starts)
        return found

    def count_batches(self, sizes: Sequence[int]) -> int:
        """Return how many times a volume of these sizes calls `forward`, without a mask."""
        padded = [max(pair) for pair in zip(sizes, self.window, strict=True)]
        return ceil(len(self.place(padded, None, 1)[0]) / self.batch_size) * self._calls

    def _outputs(
        self,
        volumes: Tensor,
        places: Sequence[tuple[int, Start]],
        on_windows: Callable[[int, int], None],
    ) -> Iterator[Tensor]:
        """Yield the outputs (K, *window) of each place, in order."""
        device = volumes.device if self._device is None else torch.device(self._device)
        for first in range(0, len(places), self.batch_size):
            batch = places[first : first + self.batch_size]
            cut = [volumes[(number, slice(None), *self._slices(start))] for number, start in batch]
            if self._compiles:
                cut += cut[:1] * (self.batch_size - len(cut))
            windows = torch.stack(cut).to(device, non_blocking=True)
            outputs = self._compute(windows)
            on_windows(first + len(batch), len(places))
            yield from outputs[: len(batch)]

    def _compute(self, windows: Tensor) -> Tensor:
        """Return the outputs of a batch: means over the ways to mirror it."""
        dtype, kind = self._compute_dtype, windows.device.type
        with nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype):
            outputs = self._mean(windows)
        if outputs.shape[2:] != windows.shape[2:]:
            raise ConfigError(
                f"windows of {list(windows.shape)} have outputs of {list(outputs.shape)}, not"
                " (N, K, *window)",
                fix="give a module with outputs for every voxel",
            )
        return outputs

    def _call(self, windows: Tensor) -> Tensor:
        if not self._compiles:
            return self._forward(windows)
        from torch._dynamo.exc import TorchDynamoException  # 2 s, so not at import

        try:
            return self._forward(windows)
        except TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(
                f"the model cannot be compiled: {reason}",
                fix="install g++ if there is none, or leave compiles out",
            ) from error

    def _slices(self, start: Start) -> tuple[slice, ...]:
        return tuple(slice(at, at + size) for at, size in zip(start, self.window, strict=True))

    def _pad(self, volumes: Tensor) -> tuple[Tensor, list[int]]:
        """Return volumes with zeros around them up to the size of a window, and how many before."""
        spare = [
            max(extent - size, 0)
            for extent, size in zip(self.window, volumes.shape[-len(self.window) :], strict=True)
        ]
        before = [count // 2 for count in spare]
        if not any(spare):
            return volumes, before
        pairs = [
            side
            for first, count in zip(before[::-1], spare[::-1], strict=True)
            for side in (first, count - first)
        ]
        return F.pad(volumes, pairs), before

    def _check_shapes(self, volumes: Tensor, masks: Tensor | None) -> tuple[int, ...]:
        sizes = tuple(volumes.shape[2:])
        if len(sizes) != len(self.window) or not volumes.numel():
            raise ConfigError(
                f"volumes have the shape {list(volumes.shape)}, the window {list(self.window)}",
                fix="give volumes (B, C, *sizes), and a window of as many sizes",
            )
        if masks is not None and (
            masks.shape != (len(volumes), *sizes) or masks.dtype.itemsize > 1
        ):
            raise ConfigError(
                f"masks are {masks.dtype} {list(masks.shape)}, not bool {[len(volumes), *sizes]}",
                fix="give a mask of each volume, without channels",
            )
        return sizes


def mirrored(
    forward: Callable[[Tensor], Tensor], flips: Sequence[int], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return a function whose outputs are means over all ways to mirror its inputs.

    Args:
        forward: from (N, C, *sizes) to (N, K, ...) with as many axes.
        flips: axes that are mirrored, 0 for the first of the sizes.
        dtype: of the means.
    """
    sets = (combinations(sorted(flips), count) for count in range(len(flips) + 1))
    mirrors = [[axis + 2 for axis in axes] for axes in chain.from_iterable(sets)]

    def once(inputs: Tensor, dims: list[int]) -> Tensor:
        outputs = forward(inputs.flip(dims) if dims else inputs)
        return (outputs.flip(dims) if dims else outputs).to(dtype)

    def mean(inputs: Tensor) -> Tensor:
        total = once(inputs, mirrors[0])
        for dims in mirrors[1:]:
            total = total + once(inputs, dims)
        return total / len(mirrors) if len(mirrors) > 1 else total

    return mean


class _Sums:
    """Weighted sums of the outputs of one volume, in the slices that windows still reach."""

    def __init__(
        self, num_outputs: int, sizes: Sequence[int], weights: Tensor, fill: float
    ) -> None:
        self._weights, self._fill = weights, fill
        self._first = 0
        # weights are summed as one more output
        self._sums = weights.new_zeros((num_outputs + 1, len(weights), *sizes))

    def add(self, start: Start, outputs: Tensor) -> None:
        """Add the outputs (K, *window) of a window at the first slice that is not taken yet."""
        sides = zip(start, self._weights.shape[1:], strict=True)
        box = self._sums[(slice(None), slice(None), *(slice(at, at + n) for at, n in sides))]
        box[:-1].addcmul_(outputs.to(box.device), self._weights)
        box[-1] += self._weights

    def take(self, end: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of a slice, and the outputs (K, d, ...) from there on, up to `end`."""
        while self._first < end:
            count = min(end - self._first, len(self._weights))
            sums, total = self._sums[:-1, :count], self._sums[-1, :count]
            yield self._first, torch.where(total > 0, sums / total, self._fill)
            self._sums = torch.cat(
                [self._sums[:, count:], torch.zeros_like(self._sums[:, :count])], 1
            )
            self._first += count


class _Kept:
    """What is kept of the outputs of all volumes."""

    def __init__(
        self, shape: Sequence[int], finish: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self._shape, self._finish, self._device = shape, finish, device
        self.result = torch.empty(0)

    def write(self, number: int, parts: Iterator[tuple[int, Tensor]]) -> None:
        """Write slices of a volume."""
        for first, outputs in parts:
            found = self._finish(outputs)
            axis = found.ndim - len(self._shape) + 1
            if not self.result.numel():
                count, *sizes = self._shape
                self.result = torch.empty(
                    (count, *found.shape[:axis], *sizes), dtype=found.dtype, device=self._device
                )
            self.result[number].narrow(axis, first, found.shape[axis]).copy_(found)


def _weights(
    window: Sequence[int], dtype: torch.dtype, device: torch.device | str
) -> Float[Tensor, "*window"]:
    weights = torch.ones(())
    for size in window:
        away = torch.arange(size) - (size - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (away / (SIGMA * size)) ** 2)
    # far from the middle a product of small numbers would vanish in 16 bits
    least = max(float(weights.min()), LEAST_WEIGHT)
    return weights.clamp(min=least).to(device, dtype)


def _starts(low: int, high: int, size: int, window: int, step: int) -> list[int]:
    """Return where windows begin that cover low..high of an axis, and stay within 0..size."""
    if high - low <= window:
        return [min(max(low - (window - (high - low)) // 2, 0), size - window)]
    return [*range(low, high - window, step), high - window]


def _box(mask: Tensor) -> list[tuple[int, int]] | None:
    """Return the first place of a mask, and that behind its last, along each axis."""
    box = []
    for axis in range(mask.ndim):
        others = [other for other in range(mask.ndim) if other != axis]
        found = mask.any(others).nonzero()
        if not len(found):
            return None
        box.append((int(found[0]), int(found[-1]) + 1))
    return box


def _check_arguments(
    window: Sequence[int], overlap: float, batch_size: int, flips: Sequence[int]
) -> None:
    problems = []
    if not window or min(window) < 1:
        problems.append(f"window={list(window)} has no size, or one below 1")
    if not 0 <= overlap < 1:
        problems.append(f"overlap={overlap} is not 0 <= overlap < 1")
    if batch_size < 1:
        problems.append(f"batch_size={batch_size} is below 1")
    if len(set(flips)) < len(flips) or not set(flips) <= set(range(len(window))):
        problems.append(f"flips={list(flips)} are not axes 0..{len(window) - 1}, each once")
    if problems:
        raise ConfigError("; ".join(problems), fix="correct the arguments of SlidingWindow")
