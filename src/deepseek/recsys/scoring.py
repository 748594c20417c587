"""Rows as they come from a program -> probabilities: what a service asks a model of tables."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepseek.datasets.feature_encoder import FeatureEncoder
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating
from deepseek.models.table_scores import features_of, table_scores

Row = Mapping[str, object]


class Scorer:
    """Scores rows with a model, with the features it was trained on.

    Args:
        engine: a model of tables with its spec, as `ModelEngine.load` returns it.

    Raises:
        ConfigError: the model does not say what its features are.
    """

    def __init__(self, engine: ModelEngine) -> None:
        self.engine = engine
        self.encoder = FeatureEncoder(features_of(engine))

    def __call__(self, rows: Sequence[Row], batch_size: int = 4096) -> dict[str, Tensor]:
        """Return a score for each row and label, float32 (N,), on the CPU.

        That of yes or no is a probability, that of a number the number.

        Args:
            rows: every column that a feature is computed from; `None` is a missing value.
            batch_size: rows computed at a time.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        labels = tuple(self.encoder.spec.label)
        found = [torch.zeros(0, len(labels))]
        with evaluating(self.engine), torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = self.encoder.encode_rows(rows[start : start + batch_size]).batch()
                found.append(table_scores(self.engine, batch))
        return dict(zip(labels, torch.cat(found).unbind(1), strict=True))
