"""The model of the service, and what it computes its features from: the same to learn and to rank.

What a row of an impression becomes is decided here alone, so that a ranker cannot compute other
features than the learner.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepseek.datasets.feature_encoder import FeatureEncoder
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.growing_table import growing_tables
from deepseek.models.model_file import read_model_file
from deepseek.models.table_model import TableModel
from deepseek.recsys.online.settings import OnlineSettings
from deepseek.recsys.real_time_crosses import RealTimeCrosses

Row = Mapping[str, object]
TIME = "time"


class OnlineModel:
    """A model with its encoder.

    Args:
        engine: a model of tables with its spec.

    Attributes:
        labels: what it predicts, in order.

    Raises:
        ConfigError: it is no model of a table, a label of it is a number, or it does not learn by
            the labels of rows alone.
    """

    def __init__(self, engine: ModelEngine) -> None:
        spec = engine.spec
        if spec is None or spec.features is None or not isinstance(engine.module, TableModel):
            raise ConfigError(
                f"{engine.architecture!r} was not trained on a table",
                fix="train one: deepseek train with data.format: table",
            )
        self.engine, self.spec, self.reading = engine, spec.features, spec.reading
        self.labels = tuple(self.spec.label)
        numbers = [name for name, each in self.spec.label.items() if each.kind != "binary"]
        if numbers:
            raise ConfigError(
                f"the label {numbers[0]} is a number; the service learns what is yes or no",
                fix="train a model with binary labels",
            )
        _check_learns_rows(engine.architecture, engine.module)
        self.encoder = FeatureEncoder(self.spec)

    @classmethod
    def load(cls, path: str | Path) -> "OnlineModel":
        """Return the model in a file."""
        return cls(ModelEngine.load(path))

    def with_weights(self, path: str | Path) -> "OnlineModel":
        """Return this model with the weights in a file, in the mode it is in.

        Nothing is built or drawn that only loading replaces, which would hold requests up. A file
        of another model is loaded as a whole.

        Raises:
            CheckpointError: the file is damaged.
        """
        engine, content = self.engine, read_model_file(path)
        own = engine.module.state_dict(keep_vars=True)
        is_other = (
            (content.architecture, content.config, content.changes)
            != (engine.architecture, engine.config, engine.changes)
            or content.spec != engine.spec
            or content.state.keys() != own.keys()
        )
        if is_other:
            return OnlineModel.load(path)
        memo: dict[int, object] = {id(engine.spec): engine.spec}
        for name, tensor in own.items():
            new = content.state[name]
            is_weight = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(new, requires_grad=False) if is_weight else new
        made = copy.copy(self)
        made.engine = copy.deepcopy(engine, memo)
        return made

    def encode(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return what the model takes.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        return self.encoder.encode_rows(rows).batch()

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits, float32 (N, labels)."""
        outputs = self.engine(batch)
        if isinstance(outputs, Tensor):
            return outputs.float().reshape(-1, 1)
        return torch.stack([outputs[name].float().reshape(-1) for name in self.labels], 1)

    @torch.inference_mode()
    def probs(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Return probabilities, float32 (N, labels); the engine is in evaluation mode."""
        return self.logits(batch).sigmoid().numpy()


def _check_learns_rows(architecture: str, module: TableModel) -> None:
    """Refuse what the service would teach nonsense, or nothing.

    Raises:
        ConfigError: it has a task of its own, or tables that grow.
    """
    if module.own_task is not None:
        raise ConfigError(
            f"{architecture} learns by a task of its own, {module.own_task}; the service learns"
            " the labels of rows",
            fix="train another model, such as deepfm, or two_tower with objective: binary",
        )
    if tables := growing_tables(module):
        raise ConfigError(
            f"{architecture} has tables that grow ({', '.join(tables)}), which the service does"
            " not update",
            fix="train it with tables of a fixed size: encoding hash or vocabulary",
        )


def make_crosses(settings: OnlineSettings) -> RealTimeCrosses | None:
    """Return counters that have seen nothing yet; `None` where there are none."""
    given = settings.crosses
    if given is None:
        return None
    return RealTimeCrosses(
        given.keys, windows=given.windows, prior=given.prior, smoothing=given.smoothing,
        max_keys=given.max_keys, time=TIME, late="now",
    )  # fmt: skip


def columns_to_send(model: OnlineModel, crosses: RealTimeCrosses | None) -> tuple[str, ...]:
    """Return the columns that an impression must have: those of the model that are not counted."""
    counted = set() if crosses is None else set(crosses.feature_names)
    keys = [] if crosses is None else [column for key in crosses.keys for column in key]
    return tuple(
        dict.fromkeys([*(name for name in model.spec.columns if name not in counted), *keys])
    )


def check_labels(model: OnlineModel, settings: OnlineSettings) -> None:
    """Refuse settings for other labels than the model has.

    Raises:
        ConfigError: they differ.
    """
    if set(model.labels) != set(settings.join.labels):
        raise ConfigError(
            f"join.labels has {', '.join(settings.join.labels)}, the model learns"
            f" {', '.join(model.labels)}",
            fix="say for every label of the model which event makes it",
        )
