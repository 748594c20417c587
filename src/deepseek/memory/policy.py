"""What is kept and what is recomputed, by name or by budget.

```
off         everything is kept, as torch does
pointwise   norms, activation functions, casts, products of elements are made again: almost free
selective   and the outputs of matrix products that activation functions read, which are wide
full        of each block only its inputs are kept
24GiB, 0.6  the cheapest mixture that keeps to a number of bytes, or to a share of the activations
```
Of what is kept, some or all may wait on the host (see `host_copies`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch._functorch.config
from torch import Tensor, nn

from deepseek.memory.blocks import RecomputedBlocks, find_blocks
from deepseek.memory.epsilons import Epsilons
from deepseek.memory.host_copies import HostCopies
from deepseek.memory.recipe import CHEAP, Cookbook, Kind
from deepseek.memory.saved import Observer, Saving

ALL_KINDS = CHEAP | {Kind.PRODUCT}
SELECTIVE_SHARE = 0.5
"""What a compiled graph may keep of the activations under `selective`."""


class MemoryPolicy:
    """Looks after what the graph keeps in a forward pass.

    Args:
        name: `off`, `pointwise`, `selective` or `full`.
        modules: the model, or its parts on this rank.
        blocks: what `full` recomputes as one; those of `find_blocks` by default.
        compiles: whether `saving` is around graphs that are compiled, block by block.

    Attributes:
        name: as it was resolved.
        blocks: what `full` recomputes.
        compiles: whether `saving` is around compiled graphs.
        keeps_norms: whether `pointwise` keeps what layer norms make, which moves many bytes.
        observer: told of every tensor that is saved, but under `full`; or `None`.
        share: of what `pointwise` keeps that a compiled graph may keep; `None`: as the name says.
        recomputed: numbers of the blocks that are recomputed as one, whatever the name.
        remade_places: matrix products that are done again, by the place of what they made among the
            tensors saved in a pass; `None`: those that `selective` stands for.
        copies: take what is kept to the host, but under `full` and in compiled graphs; or `None`.
        copied_places: of what they take; `None`: all that is kept.
    """

    def __init__(
        self,
        name: str,
        modules: Sequence[nn.Module] = (),
        blocks: Sequence[nn.Module] = (),
        *,
        compiles: bool = False,
    ) -> None:
        self.name = name
        self.keeps_norms = False
        self.observer: Observer | None = None
        self.share: float | None = None
        self.recomputed: frozenset[int] = frozenset()
        self.remade_places: frozenset[int] | None = None
        self.copies: HostCopies | None = None
        self.copied_places: frozenset[int] | None = None
        self.modules = tuple(modules)
        self.blocks = tuple(blocks) or tuple(b for m in modules for b in find_blocks(m))
        self._recomputed = RecomputedBlocks(self.blocks, self.modules)
        self._epsilons: Epsilons | None = None
        self.compiles = compiles

    @property
    def recomputes_blocks(self) -> bool:
        """Whether some blocks keep only their inputs."""
        return self.name == "full" or bool(self.recomputed)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Put the policy on what is computed inside, operator by operator."""
        if self.compiles:
            with self.compiling():
                yield
            return
        if self.name == "full":
            # nothing else: what was saved inside a recomputed block can be asked for only once
            with self._recomputed.open():
                yield
            return
        copies = self.copies if self.copied_places != frozenset() else None
        if self.name == "off" and self.observer is None and copies is None:
            yield
            return
        if self._epsilons is None:
            self._epsilons = Epsilons(*self.modules)
        epsilons = self._epsilons
        blocks = self._recomputed
        cheap = Cookbook(epsilons, self._cheap_kinds(), blocks.is_inside)
        products = None
        if self.name == "selective":
            products = Cookbook(epsilons, ALL_KINDS, blocks.is_inside)
        saving = Saving(cheap, products, self._remakes, self.observer, copies, self._copies)
        with blocks.open(self.recomputed), saving():
            yield

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Put it on what is compiled inside: the compiler remakes what is pointwise by itself."""
        share = self.share
        if share is None:
            share = SELECTIVE_SHARE if self.name == "selective" else 1.0
        recomputed = self._recomputed.open() if self.name == "full" else nullcontext()
        with torch._functorch.config.patch(activation_memory_budget=share), recomputed:
            yield

    def _cheap_kinds(self) -> frozenset[Kind]:
        """Return what is made again wherever it can be."""
        if self.name == "off":
            return frozenset()
        is_less = self.name == "pointwise" and self.keeps_norms
        return CHEAP - {Kind.LAYER_NORM} if is_less else CHEAP

    def _remakes(self, place: int, tensor: Tensor) -> bool:
        if self.remade_places is not None:
            return place in self.remade_places
        return feeds_activation(tensor)

    def _copies(self, place: int) -> bool:
        return self.copied_places is None or place in self.copied_places


def feeds_activation(tensor: Tensor) -> bool:
    """Return whether the output of a product is saved whole and in order, not head by head."""
    base = tensor._base
    return base is None or (tensor.numel() == base.numel() and tensor.is_contiguous())
