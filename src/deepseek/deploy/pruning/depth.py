"""How much a block changes what goes through it: those that change least can be left out.

Paper: Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1: one minus the cosine of what goes in and
what comes out. Departure: over a whole sample rather than over a token.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from deepseek.deploy.fusion import first_tensor
from deepseek.deploy.pruning.importance import BATCH_SIZE, Data
from deepseek.deploy.pruning.masks import PRUNABLE
from deepseek.deploy.samples import Samples
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating

NUM_BATCHES = 4
LISTS = (nn.ModuleList, nn.Sequential)


def measure_influence(engine: ModelEngine, data: Data | None) -> dict[tuple[str, int], float]:
    """Return (name of a list, index of a block) -> its influence, from 0, on average over samples.

    Blocks whose output is of another shape than their input are left out.

    Args:
        engine: not changed.
        data: samples; targets are not looked at.

    Raises:
        ConfigError: there are no data, or no block keeps the shape of what goes through it.
    """
    if data is None:
        raise ConfigError(
            'what="depth" measures what each block does, and there are no data',
            fix="give data=, a data set",
        )
    blocks = _blocks_of(engine)
    sums: dict[tuple[str, int], float] = {}
    num_samples = 0
    hooks = [block.register_forward_hook(_watch(sums, key)) for key, block in blocks.items()]
    try:
        with evaluating(engine), torch.inference_mode():
            for batch in Samples(data, BATCH_SIZE, as_learnt=True).first(NUM_BATCHES):
                engine(batch["inputs"].to(engine.device))
                num_samples += len(batch["inputs"])
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        raise ConfigError(
            "no block of this model keeps the shape of what goes through it",
            fix='cut channels instead: what="width"',
        )
    inside = tuple(f"{path}.{index}.".removeprefix(".") for path, index in sums)
    return {
        (path, index): total / num_samples
        for (path, index), total in sums.items()
        if not f"{path}.".startswith(inside)  # a block goes as a whole
    }


def _blocks_of(engine: ModelEngine) -> dict[tuple[str, int], nn.Module]:
    """Return the blocks of our models, or of lists of modules with parts of their own."""
    paths = engine.hints.blocks or [
        name for name, part in engine.module.named_modules() if isinstance(part, LISTS)
    ]
    return {
        (path, index): block
        for path in paths
        for index, block in enumerate(engine.module.get_submodule(path).children())
        if not isinstance(block, LISTS) and _has_products_inside(block)
    }


def _has_products_inside(block: nn.Module) -> bool:
    return any(isinstance(part, PRUNABLE) for part in block.modules() if part is not block)


def _watch(sums: dict[tuple[str, int], float], key: tuple[str, int]):
    def note(block: nn.Module, inputs: tuple, outputs: object) -> None:
        del block
        before, after = inputs[0] if inputs else None, first_tensor(outputs)
        if isinstance(before, Tensor) and before.shape == after.shape:
            cosines = cosine_similarity(before.flatten(1).float(), after.flatten(1).float())
            sums[key] = sums.get(key, 0.0) + float((1 - cosines).clamp(min=0).sum())

    return note
