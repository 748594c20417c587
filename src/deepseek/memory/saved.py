"""Which tensors the graph keeps from forward to backward, and what takes the others' place.

```
with policy.saving():          around forward pass and loss
    loss = ...
```
Each tensor that an operation saves is kept, copied to the host (see `host_copies`), or replaced by
a recipe (see `recipe`). Gradients are the same to the bit: what is made again is made by the same
operation from the same numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deepseek.memory.host_copies import HostCopies, can_be_copied
from deepseek.memory.recipe import Cookbook, Kind, Recipe

MIN_BYTES = 1 << 12
"""Less than this is kept: a recipe is an object, too."""


class Packed(Protocol):
    """What stands for a saved tensor."""

    def unpack(self) -> Tensor:
        """Return the tensor."""
        ...


class Kept:
    """The tensor itself."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def unpack(self) -> Tensor:
        """Return it.

        Raises:
            RuntimeError: it has been written to since.
        """
        if self._tensor._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an"
                f" inplace operation: {tuple(self._tensor.shape)} is at version"
                f" {self._tensor._version}, expected {self._version}"
            )
        return self._tensor


class Remade:
    """A recipe, and which view of what it makes was saved."""

    __slots__ = ("_base_stride", "_recipe", "_view")

    def __init__(self, recipe: Recipe, tensor: Tensor, base: Tensor) -> None:
        recipe.num_uses += 1
        self._recipe = recipe
        self._base_stride, self._view = None, None
        if base is not tensor:
            self._base_stride = base.stride()
            offset = tensor.storage_offset() - base.storage_offset()
            self._view = (tensor.shape, tensor.stride(), offset)

    @property
    def recipe_id(self) -> int:
        """Tells one recipe from another, while this is alive."""
        return id(self._recipe)

    @property
    def held_bytes(self) -> int:
        """Bytes that the recipe keeps of its own."""
        return self._recipe.held_bytes

    def unpack(self) -> Tensor:
        """Make it."""
        with torch.no_grad():
            made = self._recipe.value()
            if self._view is None:
                return made
            shape, stride, offset = self._view
            if self._base_stride is not None and made.stride() != self._base_stride:
                aligned = made.new_empty_strided(made.shape, self._base_stride)
                made = aligned.copy_(made)
            return made.as_strided(shape, stride, offset + made.storage_offset())


class Observer(Protocol):
    """Learns what is saved."""

    def note(self, place: int, tensor: Tensor, packed: Packed, kind: Kind | None) -> None:
        """Learn of a tensor.

        Args:
            place: among those saved in a pass, from 0.
            tensor: as it was saved.
            packed: what stands for it.
            kind: of the operation that makes it again; `None`: it is kept.
        """
        ...


class Saving:
    """Decides what happens to each tensor that the graph saves.

    Args:
        cookbook: recipes of what is made again wherever possible.
        products: recipes of matrix products as well, or `None`.
        is_product_remade: whether a product is done again, of the place of its output among the
            tensors saved in a pass, from 0, and the output.
        observer: told of everything, or `None`.
        copies: take what is kept to the host; `None`: it stays on the device.
        is_copied: whether they take it, of its place.
    """

    def __init__(
        self,
        cookbook: Cookbook,
        products: Cookbook | None = None,
        is_product_remade: Callable[[int, Tensor], bool] = lambda place, tensor: True,
        observer: Observer | None = None,
        copies: HostCopies | None = None,
        is_copied: Callable[[int], bool] = lambda place: True,
    ) -> None:
        self._cookbook = cookbook
        self._products = products
        self._is_product_remade = is_product_remade
        self._observer = observer
        self._copies = copies
        self._is_copied = is_copied
        self._place = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Look after what is saved inside."""
        self._place = 0
        if self._copies is not None:
            self._copies.begin()
        with saved_tensors_hooks(self._pack, _unpack):
            yield

    def _pack(self, tensor: Tensor) -> Packed:
        place = self._place
        self._place += 1
        if tensor.is_leaf:
            return Kept(tensor)
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.nbytes < MIN_BYTES:
            return Kept(tensor.detach())
        base = tensor._base
        if base is not None and (_is_weight(base) or base.dtype != tensor.dtype):
            return Kept(tensor.detach())
        packed, kind = self._replace(tensor, place)
        if self._observer is not None:
            self._observer.note(place, tensor, packed, kind)
        return packed

    def _replace(self, tensor: Tensor, place: int) -> tuple[Packed, Kind | None]:
        source = source_of(tensor)
        recipe = self._cookbook.find(source)
        if recipe is None and self._products is not None and self._is_product_remade(place, tensor):
            recipe = self._products.find(source)
        if recipe is None:
            if self._copies is not None and self._is_copied(place) and can_be_copied(tensor):
                return self._copies.put(tensor), None
            return Kept(tensor.detach()), None
        return Remade(recipe, tensor, source), recipe.kind


def source_of(tensor: Tensor) -> Tensor:
    """Return the tensor whose recipe makes a saved one: itself, or what it is a view of.

    A view of a DTensor is made again as such. What was taken out of a DTensor is a view of a part
    that no operation has made.
    """
    base = tensor._base
    if base is None or base.is_leaf or is_traceable_wrapper_subclass(tensor):
        return tensor
    return base


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad


def _unpack(packed: Packed) -> Tensor:
    return packed.unpack()
