"""The same encoder for another purpose: its blocks stay, what makes outputs is new."""

import torch

from deepseek.errors import ConfigError
from deepseek.models.encoder import Encoder
from deepseek.models.engine import ModelEngine

_PARTS = ("pooler.", "transform.", "head.")


def with_outputs(
    engine: ModelEngine, outputs: str, num_classes: int | None = None, *, seed: int = 0
) -> ModelEngine:
    """Return a copy of an encoder whose outputs are others; it knows no data yet.

    Parts that both have (a pooler, a transform) keep their weights; the others begin anew. A
    pretrained encoder becomes a classifier so, and a classifier one that finds hidden tokens.

    Args:
        engine: an encoder.
        outputs: as for `Encoder`.
        num_classes: likewise; `None` leaves the head to the data.
        seed: of the parts that begin anew.

    Raises:
        ConfigError: the model is no `Encoder`, or was cut or quantised.
    """
    if not isinstance(engine.module, Encoder) or engine.changes:
        what = "was cut or quantised" if engine.changes else "is no encoder"
        raise ConfigError(
            f"the {engine.architecture!r} {what}, so its outputs cannot be exchanged",
            fix="give an encoder as it was trained",
        )
    config = {**engine.config, "outputs": outputs}
    config.pop("num_classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = ModelEngine(engine.architecture, num_classes=num_classes, **config)
    weight = next(engine.parameters())
    other.to(weight.device, weight.dtype).train(engine.training)
    own = other.module.state_dict()
    with torch.no_grad():
        for name, value in engine.module.state_dict().items():
            is_same = name in own and own[name].shape == value.shape
            if is_same and not (name.startswith("head.") and outputs != engine.config["outputs"]):
                own[name].copy_(value)
            elif not is_same and not name.startswith(_PARTS):
                raise ConfigError(
                    f"{name} of the encoder has no place in one with outputs={outputs!r}",
                    fix="give an encoder of this library",
                )
    return other
