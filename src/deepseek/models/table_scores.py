"""What a model of tables says of a batch: a score for each label.

Shapes: N rows, T labels.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from deepseek.config.features import FeatureSpec
from deepseek.errors import ConfigError
from deepseek.models.engine import ModelEngine


def features_of(engine: ModelEngine) -> FeatureSpec:
    """Return what a model of tables computes its features from.

    Raises:
        ConfigError: the model does not say it: it was not trained on a table.
    """
    if engine.spec is None or engine.spec.features is None:
        raise ConfigError(
            f"{engine.architecture!r} does not say what the columns of a row mean: it was not"
            " trained on a table",
            fix="load a model that was trained on an InteractionDataset",
        )
    return engine.spec.features


def table_scores(engine: ModelEngine, batch: Mapping[str, Tensor]) -> Float[Tensor, "N T"]:
    """Return the scores of rows, float32, on the CPU; the mode is the caller's.

    That of yes or no is a probability, that of a number the number; labels stand in the order of
    the feature spec.
    """
    outputs = engine({name: each.to(engine.device) for name, each in batch.items()})
    columns = []
    for name, entry in features_of(engine).label.items():
        score = outputs if isinstance(outputs, Tensor) else outputs[name]
        score = score.float().reshape(-1)
        columns.append(score.sigmoid() if entry.kind == "binary" else score)
    return torch.stack(columns, 1).cpu()
