"""Whole blocks recomputed: of each only its inputs are kept.

Paper: Chen et al. 2016, arXiv 1604.06174. The random numbers of dropout are drawn again from the
same state; statistics of batches are not counted twice.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr
from torch.utils.checkpoint import checkpoint

from deepseek.memory.node import Node

SMALL_NUMEL = 1 << 16
"""Larger buffers are tables, which a forward pass does not change."""


def find_blocks(root: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that are repeated: the innermost lists of modules of one class.

    Args:
        root: any model; parts of `torch.nn` itself (linears in a row) are no blocks.
    """
    found: list[nn.Module] = []
    for child in root.children():
        inner = find_blocks(child)
        if not inner and isinstance(root, nn.ModuleList | nn.Sequential) and _is_block(child):
            inner = [child]
        found += inner
    return found


def _is_block(module: nn.Module) -> bool:
    is_own = not type(module).__module__.startswith("torch.nn.")
    return is_own and sum(1 for _ in module.children()) > 1


class RecomputedBlocks:
    """Lets blocks keep only their inputs where `open`.

    Args:
        blocks: of a model; what each computes is found when it is first opened.
        roots: the models, whose caches of keys and values are left out: a block that is run again
            would append to them again.
    """

    def __init__(self, blocks: Sequence[nn.Module], roots: Sequence[nn.Module] = ()) -> None:
        self._blocks = tuple(blocks)
        self._recomputing: list[Callable] = []  # the same each time: compiled graphs guard them
        self._begins: list[int] = []
        self._ends: list[int] = []
        configs = {id(c): c for root in roots for m in root.modules() if (c := _config(m))}
        self._caching = [each for each in configs.values() if each.use_cache]

    @contextmanager
    def open(self, numbers: Collection[int] | None = None) -> Iterator[None]:
        """Recompute the blocks that are run inside.

        Args:
            numbers: of those blocks; `None`: all.
        """
        self._begins.clear()
        self._ends.clear()
        if numbers is not None and not numbers:
            yield
            return
        if not self._recomputing:
            self._recomputing = [_recomputing(block, self._close) for block in self._blocks]
        wanted = range(len(self._blocks)) if numbers is None else sorted(numbers)
        blocks = [self._blocks[number] for number in wanted]
        own = [block.__dict__.get("forward") for block in blocks]
        for number, block in zip(wanted, blocks, strict=True):
            block.forward = self._recomputing[number]
        for config in self._caching:
            config.use_cache = False
        try:
            yield
        finally:
            for config in self._caching:
                config.use_cache = True
            for block, forward in zip(blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def is_inside(self, node: Node) -> bool:
        """Return whether an operation of this pass is one of a recomputed block.

        What such an operation has saved can be asked for only once: by its own backward pass.
        """
        at = bisect_right(self._begins, node._sequence_nr()) - 1
        return at >= 0 and node._sequence_nr() < self._ends[at]

    def _close(self, begin: int, end: int) -> None:
        """Remember the operations of a recomputed block, which autograd numbers in a row."""
        self._begins.append(begin)
        self._ends.append(end)


def _config(module: nn.Module) -> Any:
    """Return the settings of a Hugging Face model, if it keeps keys and values."""
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "use_cache", None), bool) else None


def _recomputing(block: nn.Module, close: Callable[[int, int], None]) -> Callable:
    forward: Any = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        before = _small_buffers(block)
        contexts = (lambda: (nullcontext(), _with(before))) if before else None
        options = {"context_fn": contexts} if contexts else {}
        begin = _get_sequence_nr()
        outputs = checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)
        close(begin, _get_sequence_nr())
        return outputs

    return run


def _small_buffers(block: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Return copies of what a forward pass may change: running statistics and the like."""
    return [
        (module, name, buffer.clone())
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.numel() <= SMALL_NUMEL
    ]


@contextmanager
def _with(before: Sequence[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Let a block find its buffers as they were, and change them where nobody looks."""
    now = [module._buffers[name] for module, name, _ in before]
    for module, name, copy in before:
        module._buffers[name] = copy.clone()
    try:
        yield
    finally:
        for (module, name, _), buffer in zip(before, now, strict=True):
            module._buffers[name] = buffer
