"""Whole blocks recomputed: of each only its inputs are kept.

Paper: Chen et al. 2016, arXiv 1604.06174. The random numbers of dropout are drawn again from the
same state; statistics of batches are not counted twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = tuple(blocks)
        self._recomputing: list[Callable] = []  # the same each time: compiled graphs guard them

    @contextmanager
    def open(self) -> Iterator[None]:
        """Recompute the blocks that are run inside."""
        blocks = self._blocks
        own = [block.__dict__.get("forward") for block in blocks]
        if not self._recomputing:
            self._recomputing = [_recomputing(block) for block in blocks]
        for block, forward in zip(blocks, self._recomputing, strict=True):
            block.forward = forward
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


def _recomputing(block: nn.Module) -> Callable:
    forward: Any = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if any(getattr(module, "track_running_stats", False) for module in block.modules()):
        options["context_fn"] = partial(_contexts, block)

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    return run


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let running statistics be counted on copies, which nobody looks at."""
    counting = [m for m in block.modules() if getattr(m, "track_running_stats", False)]
    counted = [dict(module._buffers) for module in counting]
    for module, buffers in zip(counting, counted, strict=True):
        copies = {n: b.clone() for n, b in buffers.items() if n in _STATISTICS and b is not None}
        module._buffers.update(copies)
    try:
        yield
    finally:
        for module, buffers in zip(counting, counted, strict=True):
            module._buffers.update(buffers)
