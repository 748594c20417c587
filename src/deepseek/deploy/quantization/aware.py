"""A model made ready to be trained as if it was quantised."""

import copy
from collections.abc import Sequence

from torch import nn

from deepseek.deploy.quantization.candidates import find_candidates
from deepseek.deploy.quantization.draft import find_probe, fold_norms
from deepseek.deploy.quantization.quantize import ACTIVATIONS
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.checks import check_choice
from deepseek.models.quantization_aware import CHANGE, apply_fake_quantization, is_aware
from deepseek.models.quantized import is_quantised


def quantization_aware(
    model: nn.Module, *, keep: Sequence[str] = (), activations: str = "affine"
) -> ModelEngine:
    """Return a copy of a trained model that is to be trained on, and then quantised.

    In the forward pass it is `int8_static`: batch norms are folded, weights and inputs rounded.
    Weights stay float and learn to be rounded; the ranges of the inputs follow what comes. The
    Trainer trains, saves and resumes it as any other; `quantize(model, "int8_static")` then needs
    no calibration. One process only.

    Args:
        model: an engine with its data spec, or trained once; it stays as it is.
        keep: names of layers, or of modules that hold them, that stay in float.
        activations: `affine`, or `symmetric` about zero.

    Raises:
        ConfigError: an argument is wrong, or there is nothing to quantise.

    Example:
        ```python
        aware = quantization_aware(ModelEngine.load("model.bin"))
        Trainer(aware, data, epochs=2, lr=1e-4).fit()
        small = quantize(aware, "int8_static", val_data)
        ```

    Paper:
        Jacob et al. 2017, arXiv 1712.05877, section 3; norms are folded before rather than during
        training.
    """
    engine = ModelEngine.wrap(model)
    check_choice(activations=(activations, ACTIVATIONS))
    if is_aware(engine.module) or is_quantised(engine.changes):
        raise ConfigError(
            "the model is quantised already, or made ready for it",
            fix="give the float model that it was made of",
        )
    copied = copy.deepcopy(engine)
    copied.graph = "dynamic"
    probe = find_probe(copied, ())
    if probe is not None:
        copied, _ = fold_norms(copied, probe)
    found = find_candidates(copied, "int8_static", keep, False, probe)
    if not found.layers:
        raise ConfigError(
            "nothing of the model can be quantised: it has no linear or convolution but its head",
            fix="keep less",
        )
    change = {
        "kind": CHANGE, "layers": list(found.layers), "is_symmetric": activations == "symmetric",
    }  # fmt: skip
    apply_fake_quantization(copied.module, change)
    copied.changes = (*copied.changes, change)
    return copied.train()
