"""Ranks candidates with the version that answers; a new one steps in between two requests."""

from collections.abc import Mapping, Sequence

import numpy as np

from deepseek.errors import DataError
from deepseek.recsys.online.events import check_columns
from deepseek.recsys.online.online_model import (
    TIME,
    OnlineModel,
    Row,
    columns_to_send,
    make_crosses,
)
from deepseek.recsys.online.settings import OnlineSettings
from deepseek.recsys.online.versions import CROSSES, MODEL, Versions
from deepseek.recsys.real_time_crosses import RealTimeCrosses


class Ranker:
    """See the module.

    Args:
        settings: of the service.

    Attributes:
        version: which version answers; 0: the first model, nothing was published yet.
    """

    def __init__(self, settings: OnlineSettings) -> None:
        self._versions = Versions(settings.path / "versions")
        self.version = 0
        self._answers = self._ready(OnlineModel.load(settings.model)), make_crosses(settings)
        self.columns = columns_to_send(*self._answers)
        self._column_set = frozenset(self.columns)
        self.labels = self._answers[0].labels
        self.refresh()

    def refresh(self) -> bool:
        """Take the version that is pointed to; return whether it is another one.

        Raises:
            CheckpointError: it is damaged; the one that was there goes on answering.
        """
        number = self._versions.current().version
        if number == self.version:
            return False
        folder = self._versions.path(number)
        model = self._ready(OnlineModel.load(folder / MODEL))
        crosses = None
        if (folder / CROSSES).exists():
            crosses = RealTimeCrosses.load(folder / CROSSES)
        self._answers, self.version = (model, crosses), number
        return True

    def _ready(self, model: OnlineModel) -> OnlineModel:
        model.engine.eval()
        for parameter in model.engine.parameters():
            parameter.requires_grad_(False)
        return model

    def rank(
        self, shared: Row, candidates: Sequence[Row], now: float, top_k: int | None = None
    ) -> tuple[list[int], dict[str, list[float]]]:
        """Return the order of candidates, by the first label, and probabilities in that order.

        Args:
            shared: columns of user and context.
            candidates: their own columns.
            now: time of the request, seconds.
            top_k: how many are wanted; by default all.

        Raises:
            DataError: a column is missing, or holds a value of another kind.
        """
        rows = [{**shared, **each} for each in candidates]
        for row in rows:
            check_columns(row, self._column_set)
        probs = self._score(rows, now)
        order = np.argsort(-probs[:, 0], kind="stable")[:top_k]
        return order.tolist(), {
            name: probs[order, number].tolist() for number, name in enumerate(self.labels)
        }

    def _score(self, rows: Sequence[Row], now: float) -> np.ndarray:
        model, crosses = self._answers
        columns: Mapping = {name: [row[name] for row in rows] for name in self.columns}
        if crosses is not None:
            keys = {column for key in crosses.keys for column in key}
            for name in keys:
                if any(isinstance(value, list) for value in columns[name]):
                    raise DataError(f"{name} is a list", fix="give a text or a number")
            events = [{**row, TIME: now} for row in rows]
            columns = {**columns, **crosses.read(events)}
        return model.probs(model.encoder.encode(columns).batch())
