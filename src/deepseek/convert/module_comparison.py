"""Whether a module computes what our model does that was made of its weights."""

import torch
from torch import Tensor, nn

from deepseek.convert.mapping import bring_out
from deepseek.convert.recognition import Recognised
from deepseek.convert.source import Source
from deepseek.convert.verify import Difference, compare, compare_modules
from deepseek.errors import ConfigError, DeepSeekError
from deepseek.models import ModelEngine

_DRAWN_STD = 0.2


def compare_with_module(
    engine: ModelEngine, found: Recognised, source: Source, module: nn.Module
) -> Difference:
    """Compare the two with the weights that they have, then with others in place of all zeros.

    A head, or the last norm of a branch, often begins as zeros: whatever stands before it would
    pass as equal.

    Args:
        engine: made of the module's weights.
        found: how these are spelled.
        source: what was read of the module.
        module: the original.

    Raises:
        ConfigError: the module does not run on what our model takes.
    """
    try:
        difference = compare(engine, found.family, module)
        ours = _draw_for_zeros(engine.module)
        if not difference.is_small or not ours:
            return difference
        theirs = _under_names_of(source, found, engine, ours)
        return compare(engine, found.family, module, ours=ours, theirs=theirs)
    except DeepSeekError:
        raise
    except Exception as error:  # whatever the module's own code raises
        raise ConfigError(
            f"it does not run on what our {found.family.architecture} takes:"
            f" {type(error).__name__}: {error}",
            fix="convert its state_dict()",
        ) from error


def compare_with_timm(engine: ModelEngine, module: nn.Module) -> Difference:
    """Compare a model of timm with timm's own of that name, which has its weights.

    As `compare_with_module`: with the weights that they have, then with others for zeros.

    Raises:
        ConfigError: the module does not run on what timm's own takes.
    """
    drawn = _draw_for_zeros(engine.module)
    try:
        difference = compare_modules(engine.module, module, {})
        if drawn and difference.is_small:
            difference = compare_modules(engine.module, module, drawn)
    except Exception as error:  # whatever the module's own code raises
        raise ConfigError(
            f"it does not run on what that takes: {type(error).__name__}: {error}"
        ) from error
    return difference


def _draw_for_zeros(module: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) * _DRAWN_STD
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.any())
    }


def _under_names_of(
    source: Source, found: Recognised, engine: ModelEngine, ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights of ours under the names that the module has for them."""
    rules = [rule for rule in found.family.rules(engine.config, found.prefix) if rule.ours in ours]
    names = {id(tensor): name for name, tensor in source.state.items()}
    return {
        names[id(found.state[name])]: tensor
        for name, tensor in bring_out(rules, ours).items()
        if name in found.state
    }
