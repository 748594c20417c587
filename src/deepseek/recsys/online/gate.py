"""What a version must pass before it answers: every one is measured, none is trusted.

```
finite      all weights are numbers, and all losses
hold-out    log-loss against the version that answers, AUC against the best that was published
slices      log-loss of each, against the first model
recent      what was predicted before it was learnt, against an older version: one that had
            seen none of it, and passed; a rise of less than two standard errors is chance
```
What moves slowly is held by the best version on this hold-out, and slices by the first model: a
thousand versions, each a little worse, pass the comparison with the one before, and not this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from deepseek.datasets.column_source import ColumnSource
from deepseek.datasets.feature_values import Column, token_of
from deepseek.errors import ConfigError
from deepseek.models.eval_mode import evaluating
from deepseek.recsys.online.learner import weights_hash
from deepseek.recsys.online.online_model import OnlineModel, Row
from deepseek.recsys.online.recent import auc, losses
from deepseek.recsys.online.settings import GateSettings
from deepseek.recsys.real_time_crosses import RealTimeCrosses

MIN_RECENT = 100
"""With fewer recent examples they are not looked at."""
Learnt = tuple[Row, int, int, float]
"""Row, label, value, and prediction before it was learnt."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version.

    Attributes:
        reasons: why it is turned down; none: it passes.
        metrics: what was measured.
    """

    reasons: tuple[str, ...] = ()
    metrics: dict = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether it may answer."""
        return not self.reasons


class Holdout:
    """Rows with labels that no version learns from.

    Args:
        path: of a table.
        model: whose features and labels they have.
        crosses: fresh counters, for features that the table does not have; `None`: there are none.
        slices: columns by whose values rows are looked at.
        min_slice: smaller slices are left out.

    Attributes:
        mark: a hash of what is in it, by which versions say what they were measured on.

    Raises:
        ConfigError: it has no column of a slice, or no rows.
    """

    def __init__(
        self,
        path: str,
        model: OnlineModel,
        crosses: RealTimeCrosses | None,
        slices: Sequence[str] = (),
        min_slice: int = 50,
    ) -> None:
        source = ColumnSource(path, model.reading)
        parts = list(source.chunks(source.columns))
        if not parts:
            raise ConfigError(f"gate.holdout={path} has no rows", fix="give one with rows")
        columns: dict = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        if crosses is not None and not set(crosses.feature_names) <= columns.keys():
            crosses.label = model.spec.label[model.labels[0]].column or model.labels[0]
            columns |= crosses.replay(columns)
        self._batch = model.encoder.encode(columns).batch()
        self._labels = model.encoder.labels(columns)
        self.mark = weights_hash({**self._batch, "labels": torch.from_numpy(self._labels)})
        self._slices: dict[str, np.ndarray] = {}
        for name in slices:
            if name not in columns:
                raise ConfigError(f"gate.slices: {name} is no column of {path}", fix="take it out")
            column = columns[name]
            cells = column.to_pylist() if isinstance(column, pa.Array) else column
            tokens = np.array([token_of(each) or "" for each in cells])
            for value in np.unique(tokens):
                if (tokens == value).sum() >= min_slice:
                    self._slices[f"{name}={value}"] = tokens == value

    def measure(self, model: OnlineModel) -> dict:
        """Return the AUC of the first label, the log-loss of all, and those of slices, nats.

        `None` is what is not defined: no labels, or predictions that are no numbers.
        """
        with evaluating(model.engine):
            probs = model.probs(self._batch)
        is_known = ~np.isnan(self._labels)
        found = losses(probs, self._labels)
        scored, labels = probs[is_known[:, 0], 0], self._labels[is_known[:, 0], 0]
        return {
            "auc": auc(scored, labels),
            "loss": _mean(found[is_known]),
            "slices": {
                name: _mean(found[rows][is_known[rows]]) for name, rows in self._slices.items()
            },
        }


def _joined(parts: list[pa.Array]) -> Column:
    """Return a column out of its parts, whose types differ where each was told from its rows."""
    if len({part.type for part in parts}) == 1:
        return pa.concat_arrays(parts)
    return [cell for part in parts for cell in part.to_pylist()]


class Gate:
    """See the module.

    Args:
        settings: limits.
        holdout: `None`: only what is recent counts.
        first: the model that the service began with.

    Raises:
        ConfigError: on the hold-out it has no loss to compare with.
    """

    def __init__(self, settings: GateSettings, holdout: Holdout | None, first: OnlineModel) -> None:
        self._settings, self._holdout = settings, holdout
        self._first = None if holdout is None else holdout.measure(first)
        if self._first is not None and self._first["loss"] is None:
            raise ConfigError(
                f"on gate.holdout={settings.holdout} the log-loss of the model is not a number",
                fix="give rows with labels, and with values that the model has predictions for",
            )
        self._answers = self._first
        self._best_auc: float | None = None if self._first is None else self._first["auc"]

    def judge(self, model: OnlineModel, older: OnlineModel, recent: Sequence[Learnt]) -> Verdict:
        """Return whether a version may answer.

        Args:
            model: the version.
            older: one that passed.
            recent: what was learnt since, in any number; a hundred or more are looked at.
        """
        state = model.engine.module.state_dict().values()
        if not all(bool(torch.isfinite(each).all()) for each in state if each.is_floating_point()):
            return Verdict(("a weight is not finite",))
        reasons, metrics = [], {}
        if self._holdout is not None:
            metrics["holdout"] = self._holdout.measure(model)
            reasons += self._compare(metrics["holdout"])
        if len(recent) >= MIN_RECENT:
            metrics["recent"] = _compare_recent(older, recent)
            rise = metrics["recent"]["loss"] - metrics["recent"]["loss_of_older"]
            # of few examples a rise may be chance
            if rise > max(self._settings.max_loss_rise, 2 * metrics["recent"]["error"]):
                reasons.append(f"recent log-loss is {rise:.4f} above that of an older version")
        return Verdict(tuple(reasons), metrics)

    def _compare(self, found: dict) -> list[str]:
        settings, first, answers = self._settings, self._first, self._answers
        if first is None or answers is None:
            return []
        if found["loss"] is None:
            return ["hold-out log-loss is not a number"]
        reasons = []
        rise = 0.0 if answers["loss"] is None else found["loss"] - answers["loss"]
        if rise > settings.max_loss_rise:
            reasons.append(f"hold-out log-loss is {rise:.4f} above that of the current version")
        if self._best_auc is not None and found["auc"] is not None:
            drop = self._best_auc - found["auc"]
            if drop > settings.max_auc_drop:
                reasons.append(f"hold-out AUC is {drop:.4f} below that of the best version")
        for name, loss in found["slices"].items():
            # a loss of all that is a number leaves none to slices but those without labels
            rise = 0.0 if loss is None else loss - first["slices"][name]
            if rise > settings.max_slice_rise:
                reasons.append(f"log-loss of {name} is {rise:.4f} above that of the first model")
        return reasons

    def note_published(self, verdict: Verdict) -> None:
        """Compare with this version from now on."""
        self._answers = verdict.metrics.get("holdout", self._answers)
        if self._answers is not None:
            self._best_auc = _best(self._best_auc, self._answers["auc"])

    def compare_with(self, model: OnlineModel) -> None:
        """Compare with this version, which answers, from now on."""
        if self._holdout is not None:
            self.note_published(Verdict(metrics={"holdout": self._holdout.measure(model)}))

    def memory(self, verdict: Verdict) -> dict:
        """Return what a restart has to know when a version is published, JSON-able."""
        if self._holdout is None:
            return {}
        best = _best(self._best_auc, verdict.metrics["holdout"]["auc"])
        return {"holdout": self._holdout.mark, "best_auc": best}

    def recall(self, memory: Mapping) -> None:
        """Take back what `memory` returned; on another hold-out it says nothing."""
        if self._holdout is not None and memory.get("holdout") == self._holdout.mark:
            self._best_auc = _best(self._best_auc, memory["best_auc"])


def _best(*areas: float | None) -> float | None:
    return max((each for each in areas if each is not None), default=None)


def _mean(values: np.ndarray) -> float | None:
    """Return the mean; `None` where there are no values, or one is no number."""
    if not len(values) or not np.isfinite(values).all():
        return None
    return float(values.mean())


def _compare_recent(older: OnlineModel, recent: Sequence[Learnt]) -> dict:
    rows, numbers, values, before = zip(*recent, strict=True)
    with evaluating(older.engine):
        probs = older.probs(older.encode(rows))
    labels = np.array(values)
    # where the older one has no prediction, as a value is too large for it, it knows nothing
    scored = np.nan_to_num(probs[np.arange(len(rows)), np.array(numbers)], nan=0.5)
    own, of_older = losses(np.array(before, np.float32), labels), losses(scored, labels)
    return {
        "loss": float(own.mean()),
        "loss_of_older": float(of_older.mean()),
        "error": float((own - of_older).std() / len(rows) ** 0.5),
        "examples": len(rows),
    }
