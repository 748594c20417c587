"""The tensors of a saved group, whole or in parts, read only where they are wanted.

A run on several ranks writes a file for each (`model.rank_3.safetensors`), in which parts of
tensors say where they lie. Any other layout reads just what overlaps with its own parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.models.tensor_part import Place, TensorPart, overlap, place_of


class _Stored(NamedTuple):
    place: Place
    size: tuple[int, ...]
    path: Path
    key: str


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name; `[name]` reads a whole one.

    Args:
        paths: safetensors files, verified.

    Raises:
        CheckpointError: two parts of a tensor disagree on its shape.
        SafetensorError: a file is not what it should be.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stored: dict[str, list[_Stored]] = {}
        self._files = {path: safe_open(str(path), "pt") for path in paths}
        for path, file in self._files.items():
            for key in file.keys():  # noqa: SIM118
                size = tuple(file.get_slice(key).get_shape())
                place = place_of(key, size)
                known = self._stored.setdefault(place.name, [])
                if known and known[0].place.shape != place.shape:
                    raise CheckpointError(
                        f"{path} holds a part of {place.name} of shape {place.shape}, another file"
                        f" says {known[0].place.shape}",
                        fix="use an older checkpoint",
                    )
                if all((each.place, each.size) != (place, size) for each in known):
                    known.append(_Stored(place, size, path, key))  # a count is in several files

    def __reduce__(self) -> tuple:
        return StoredTensors, (list(self._files),)  # another process opens the files anew

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        if len(stored) == 1 and stored[0].size == stored[0].place.shape:
            return self._files[stored[0].path].get_tensor(stored[0].key)
        whole = torch.empty(stored[0].place.shape, dtype=self._dtype(name))
        self.fill(TensorPart.whole(name, whole))
        return whole

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return self._stored[name][0].place.shape

    def _dtype(self, name: str) -> torch.dtype:
        stored = self._stored[name][0]
        first = tuple(slice(0, min(1, size)) for size in stored.size)
        return _cut(self._files[stored.path], stored.key, first).dtype

    def new(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return an empty tensor of a stored one's dtype."""
        return torch.empty(tuple(shape), dtype=self._dtype(name))

    @torch.no_grad()
    def fill(self, part: TensorPart) -> None:
        """Write what is stored into `part.tensor`.

        Raises:
            KeyError: there is no tensor of that name.
            CheckpointError: it has another shape, or some of it is missing.
        """
        place, tensor = part.place, part.tensor
        stored = self._stored[place.name]
        if stored[0].place.shape != place.shape:
            raise CheckpointError(
                f"{place.name} is stored with shape {stored[0].place.shape}, and the model has"
                f" {place.shape}",
                fix="resume with the model that the run was started with",
            )
        filled = 0
        # which values are there, where parts might overlap
        seen = torch.zeros(tensor.shape, dtype=torch.bool) if len(stored) > 1 else None
        for each in stored:
            found = overlap(place, tuple(tensor.shape), each.place, each.size)
            if found is not None:
                here, there = found
                values = _cut(self._files[each.path], each.key, there)
                tensor[here].copy_(values)
                if seen is not None:
                    seen[here] = True
                else:
                    filled = values.numel()
        if seen is not None:
            filled = int(seen.sum())
        if filled != tensor.numel():
            raise CheckpointError(
                f"{place.name} is stored in parts, and {tensor.numel() - filled:,} of"
                f" {tensor.numel():,} values are missing",
                fix="use an older checkpoint",
            )


def _cut(file: safe_open, key: str, slices: tuple[slice, ...]) -> Tensor:
    if not slices:
        return file.get_tensor(key)
    return file.get_slice(key)[slices]
