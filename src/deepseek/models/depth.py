"""How far each weight of a model is from its head, counted in blocks."""

from collections.abc import Iterable

from torch import nn

from deepseek.errors import ConfigError
from deepseek.models.hints import ParallelHints


def block_names(module: nn.Module, hints: ParallelHints) -> list[str]:
    """Return the names of the blocks, in order of execution.

    Raises:
        ConfigError: the model does not say what its blocks are.
    """
    names = [
        f"{name}.{number}"
        for name in hints.blocks
        for number in range(len(module.get_submodule(name)))  # pyright: ignore[reportArgumentType]
    ]
    if not names:
        raise ConfigError(
            f"{type(module).__name__} does not say what its blocks are",
            fix="use an architecture of list_models, such as encoder, vit or resnet50",
        )
    return names


def distances(module: nn.Module, hints: ParallelHints, names: Iterable[str]) -> dict[str, int]:
    """Return the distance of each weight from the head: 0 behind the last block, 1 in it.

    Args:
        module: the model.
        hints: of the model.
        names: of weights.

    Raises:
        ConfigError: the model does not say what its blocks are.
    """
    blocks = block_names(module, hints)
    levels = {name: len(blocks) - number for number, name in enumerate(blocks)}
    levels |= dict.fromkeys(hints.embeddings, len(blocks) + 1)
    trunk = hints.blocks[0].rpartition(".")[0]
    found = {}
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        # what stands beside the blocks is added to the embeddings: positions, a class token
        own = len(blocks) + 1 if name.rpartition(".")[0] == trunk else 0
        found[name] = next((levels[prefix] for prefix in prefixes if prefix in levels), own)
    return found
