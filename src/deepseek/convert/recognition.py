"""Which family weights belong to, told from the names and shapes of their tensors."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from deepseek.convert.encoder_families import BERT, DISTILBERT, ROBERTA
from deepseek.convert.family import Family, Shapes
from deepseek.convert.gpt2 import GPT2_FAMILY
from deepseek.convert.llama_families import LLAMA, MISTRAL, QWEN2, QWEN3
from deepseek.convert.mapping import substitute
from deepseek.convert.resnet_families import CIFAR_RESNET, HUGGINGFACE_RESNET, TORCHVISION_RESNET
from deepseek.convert.vit_families import (
    HUGGINGFACE_DEIT,
    HUGGINGFACE_VIT,
    TIMM_VIT,
    TORCHVISION_VIT,
)
from deepseek.errors import ConfigError
from deepseek.registry import did_you_mean

FAMILIES: tuple[Family, ...] = (
    ROBERTA, BERT, DISTILBERT, GPT2_FAMILY, TIMM_VIT, TORCHVISION_VIT, HUGGINGFACE_DEIT,
    HUGGINGFACE_VIT, TORCHVISION_RESNET, HUGGINGFACE_RESNET, CIFAR_RESNET, LLAMA, MISTRAL, QWEN2,
    QWEN3,
)  # fmt: skip
"""In the order in which they are tried: the more special first."""


@dataclass(frozen=True)
class Recognised:
    """A family, and the state dict in its spelling.

    Attributes:
        family: how the weights are spelled.
        prefix: before the names of the backbone.
        state: name -> tensor, in the family's spelling of files.
        notes: what was done to the names.
    """

    family: Family
    prefix: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    def shapes(self, source: object) -> Shapes:
        """Return the shapes, below the prefix."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        return Shapes(shapes, self.prefix, source)


def recognise(
    state: Mapping[str, Tensor], source: object, family: str | None = None
) -> Recognised | None:
    """Return the family that a state dict belongs to; `None` where it is of none.

    Args:
        state: name -> tensor.
        source: where it comes from, for messages.
        family: a family's name, where the user or a `config.json` says it.

    Raises:
        ConfigError: `family` is not known.
    """
    families = FAMILIES if family is None else _named(family)
    for candidate in families:
        for found in _readings(candidate, state):
            if family is not None or candidate.fits(found.shapes(source)):
                return found
    return None


def family_names() -> list[str]:
    """Return the names of all families."""
    return sorted({family.name for family in FAMILIES})


def _named(name: str) -> Sequence[Family]:
    found = [family for family in FAMILIES if family.name == name]
    if not found:
        raise ConfigError(f"unknown family {name!r}", fix=did_you_mean(name, family_names()))
    return found


def _readings(family: Family, state: Mapping[str, Tensor]) -> Iterator[Recognised]:
    """Yield the state dict as the family may be meant to spell it."""
    in_files = tuple((memory, file) for file, memory in reversed(family.in_memory))
    for pairs in ((), in_files) if in_files else ((),):
        renamed = {substitute(name, (*pairs, *family.old_spellings)): name for name in state}
        if len(renamed) != len(state):
            continue
        anchor = family.anchors[0]
        for name in renamed:
            before = name.removesuffix(anchor)
            if before == name or (before and not before.endswith(".")):
                continue
            if any(f"{before}{each}" not in renamed for each in family.anchors):
                continue
            prefix = next(each for each in (*family.prefixes, "") if before.endswith(each))
            wrapper = before.removesuffix(prefix) if prefix else before
            if not all(each.startswith(wrapper) for each in renamed):
                continue
            notes = [f"{wrapper!r} before every name is left out"] if wrapper else []
            old = [name for name in renamed if name != renamed[name] and not pairs]
            if old:
                notes.append(f"{len(old)} tensors have names of an older spelling")
            tensors = {each.removeprefix(wrapper): state[renamed[each]] for each in renamed}
            yield Recognised(family, prefix, tensors, tuple(notes))
            return


def find_layers(state: Mapping[str, Tensor]) -> str:
    """Return the names of a state dict with numbers as N, a few of them, to show what it is."""
    seen = dict.fromkeys(re.sub(r"\d+", "N", name) for name in state)
    return ", ".join(list(seen)[:6])
