"""Ranks candidates with the version that answers; a new one steps in between two requests."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek.datasets.feature_values import Column, Repeated
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


@dataclass(frozen=True)
class Answering:
    """A version that answers.

    Attributes:
        model: in evaluation mode.
        crosses: its counters; `None`: it has none.
        version: its number; 0: the first model, nothing was published yet.
        offset: it has learnt the events of the log before this one.
    """

    model: OnlineModel
    crosses: RealTimeCrosses | None
    version: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Ranking:
    """An order of candidates.

    Attributes:
        order: numbers of candidates, the best first.
        probs: label -> probabilities in that order.
        version: which version said so.
        offset: what it had learnt, see `Answering`.
    """

    order: list[int]
    probs: dict[str, list[float]]
    version: int
    offset: int


class Ranker:
    """See the module.

    Args:
        settings: of the service.

    Attributes:
        answers: the version that answers.
        columns: that user, context and candidate must have between them.
    """

    def __init__(self, settings: OnlineSettings) -> None:
        self._versions = Versions(settings.path / "versions")
        self._taking = threading.Lock()
        model, crosses = _ready(OnlineModel.load(settings.model)), make_crosses(settings)
        self.answers = Answering(model, crosses)
        self.columns = columns_to_send(model, crosses)
        self._column_set = frozenset(self.columns)
        self.refresh()

    def refresh(self) -> bool:
        """Take the version that is pointed to; return whether it is another one.

        Raises:
            CheckpointError: it is damaged; the one that was there goes on answering.
        """
        with self._taking:
            number = self._versions.current().version
            if number == self.answers.version:
                return False
            folder = self._versions.path(number)
            model = _ready(self.answers.model.with_weights(folder / MODEL))
            crosses = None
            if (folder / CROSSES).exists():
                crosses = RealTimeCrosses.load(folder / CROSSES)
            offset = self._versions.about(number)["offset"]
            self.answers = Answering(model, crosses, number, offset)
            return True

    def rank(
        self, shared: Row, candidates: Sequence[Row], now: float, top_k: int | None = None
    ) -> Ranking:
        """Return the order of candidates, by the first label.

        Args:
            shared: columns of user and context.
            candidates: their own columns.
            now: time of the request, seconds.
            top_k: how many are wanted; by default all.

        Raises:
            DataError: a column is missing, or holds a value of another kind, or one so large that
                the model has no prediction.
        """
        columns = self._columns(shared, candidates)
        answers = self.answers  # a newer one may take its place meanwhile
        model, crosses = answers.model, answers.crosses
        if crosses is not None:
            columns |= crosses.read_columns({**columns, TIME: Repeated(now, len(candidates))})
        found = model.probs(model.encoder.encode(columns).batch())
        if not np.isfinite(found).all():
            place = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise DataError(
                f"the model has no prediction for candidate {place}: a value is too large",
                fix="mend the value; null where there is none",
            )
        order = np.argsort(-found[:, 0], kind="stable")[:top_k]
        probs = {name: found[order, n].tolist() for n, name in enumerate(model.labels)}
        return Ranking(order.tolist(), probs, answers.version, answers.offset)

    def _columns(self, shared: Row, candidates: Sequence[Row]) -> dict[str, Column]:
        """Return the columns of candidates; what no candidate has of its own is read once."""
        own = set().union(*candidates)
        columns: dict[str, Column] = {}
        try:
            for name in self.columns:
                if name not in own:
                    columns[name] = Repeated(shared[name], len(candidates))
                elif name in shared:
                    columns[name] = [each.get(name, shared[name]) for each in candidates]
                else:
                    columns[name] = [each[name] for each in candidates]
        except KeyError:
            for each in candidates:
                check_columns({**shared, **each}, self._column_set)
            raise
        return columns


def _ready(model: OnlineModel) -> OnlineModel:
    model.engine.eval()
    for parameter in model.engine.parameters():
        parameter.requires_grad_(False)
    return model
