"""Rows as they come from a program -> probabilities: what a service asks a model of tables."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepseek.datasets.feature_encoder import FeatureEncoder
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.eval_mode import evaluating

Row = Mapping[str, object]


class Scorer:
    """Scores rows with a model, with the features it was trained on.

    Args:
        engine: a model of tables with its spec, as `ModelEngine.load` returns it.

    Raises:
        ConfigError: the model does not say what its features are.
    """

    def __init__(self, engine: ModelEngine) -> None:
        if engine.spec is None or engine.spec.features is None:
            raise ConfigError(
                f"{engine.architecture!r} does not say what the columns of a row mean: it was not"
                " trained on a table",
                fix="load a model that was trained on an InteractionDataset",
            )
        self.engine = engine
        self.encoder = FeatureEncoder(engine.spec.features)

    def __call__(self, rows: Sequence[Row], batch_size: int = 4096) -> dict[str, Tensor]:
        """Return a score for each row and label, float32 (N,), on the CPU.

        That of yes or no is a probability, that of a number the number.

        Args:
            rows: every column that a feature is computed from; `None` is a missing value.
            batch_size: rows computed at a time.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        labels = self.encoder.spec.label
        found: dict[str, list[Tensor]] = {name: [] for name in labels}
        with evaluating(self.engine), torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = self.encoder.encode_rows(rows[start : start + batch_size]).batch()
                on_device = {name: each.to(self.engine.device) for name, each in batch.items()}
                outputs = self.engine(on_device)
                if isinstance(outputs, Tensor):
                    outputs = {next(iter(labels)): outputs}
                for name, entry in labels.items():
                    score = outputs[name].float().reshape(-1)
                    found[name].append((score.sigmoid() if entry.kind == "binary" else score).cpu())
        return {name: torch.cat([*parts, torch.zeros(0)]) for name, parts in found.items()}
