"""Which layers of a model can be quantised, and why the others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from deepseek.deploy.quantization.observation import find_called
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine, MultiHead
from deepseek.models.assembly import head_names
from deepseek.models.quantized import CANDIDATES, why_not
from deepseek.registry import did_you_mean


@dataclass
class Candidates:
    """Layers by name.

    Attributes:
        layers: that can be quantised.
        kept: name -> why it stays in float.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def find_candidates(
    engine: ModelEngine,
    scheme: str,
    keep: Sequence[str],
    wants_embeddings: bool,
    probe: Tensor | None,
) -> Candidates:
    """Sort the layers of an engine.

    Args:
        engine: in float.
        scheme: one of `models.quantized.SCHEMES`.
        keep: names that stay in float, or of modules that hold them.
        wants_embeddings: whether tables of embeddings are meant.
        probe: inputs of the engine, to see what is called; `None`: all is taken to be.

    Raises:
        ConfigError: a name of `keep` is none of the model's.
    """
    parts = {name: part for name, part in engine.module.named_modules() if _is_meant(part)}
    _check_names(keep, parts)
    heads = _find_heads(engine)
    shared = _shared_weights(engine.module)
    found = Candidates()
    for name, part in parts.items():
        reason = why_not(part, scheme)
        if any(name == each or name.startswith(f"{each}.") for each in keep):
            reason = "asked for"
        elif name in heads:
            reason = "makes the logits"
        elif isinstance(part, nn.Embedding) and not wants_embeddings:
            reason = reason or "an embedding"
        elif id(part.weight) in shared:
            reason = "shares its weights"
        if reason is None:
            found.layers[name] = part
        else:
            found.kept[name] = reason
    if probe is not None:
        called = find_called(engine, found.layers, probe)
        for name in [name for name in found.layers if name not in called]:
            del found.layers[name]
            found.kept[name] = "is not called by itself"
    return found


def _find_heads(engine: ModelEngine) -> tuple[str, ...]:
    if isinstance(engine.module, MultiHead):
        return tuple(f"heads.{name}.linear" for name in engine.module.heads)
    return () if engine.is_foreign else head_names(engine.module)


def _is_meant(part: nn.Module) -> bool:
    return isinstance(part, CANDIDATES) and isinstance(part.weight, nn.Parameter)


def _shared_weights(module: nn.Module) -> frozenset[int]:
    """Return the ids of parameters that have several names."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in module.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(shared)


def _check_names(keep: Sequence[str], parts: dict[str, nn.Module]) -> None:
    pieces = [name.split(".") for name in parts]
    holders = {".".join(each[:end]) for each in pieces for end in range(1, len(each) + 1)}
    for each in keep:
        if each not in holders:
            raise ConfigError(
                f"keep={each!r} names no linear, convolution or embedding of the model",
                fix=did_you_mean(each, holders),
            )
