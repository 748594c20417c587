"""The process that learns: log -> updates -> gate -> versions, and checkpoints to restart from.

`status.json` in the folder of the service says how far it is; it is replaced, never changed.
That it is young says that the learner lives: one that waits for its log touches it.
"""

import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from deepseek.checkpoint import CheckpointStore
from deepseek.errors import CheckpointError, CommunicationError, ConfigError
from deepseek.recsys.online.event_log import EventLog, open_log
from deepseek.recsys.online.gate import Gate, Holdout, Verdict
from deepseek.recsys.online.learner import Cuts, Learner
from deepseek.recsys.online.online_model import OnlineModel, make_crosses
from deepseek.recsys.online.settings import OnlineSettings, seconds
from deepseek.recsys.online.single_writer import hold
from deepseek.recsys.online.versions import CROSSES, MODEL, Versions
from deepseek.whole_file import replacing

LOG = logging.getLogger("deepseek.online")
STATUS = "status.json"
IDLE_S = 0.02
STATUS_S = 0.5
AWAY_S = 0.25
"""Between two looks at a log that does not answer."""
NUM_POINTS = 600
"""Of the history that the dashboard draws."""


class Publisher:
    """Lets versions of a learner answer, if the gate lets them pass.

    Args:
        learner: whose.
        settings: of the service.
        log_end: where the log ended when the learner began.

    Attributes:
        num_refused: versions that did not pass.
        num_refused_since: those since one passed; above 0: what answers is not the newest.
        last: what the gate said last.
    """

    def __init__(
        self, learner: Learner, settings: OnlineSettings, log_end: float = math.inf
    ) -> None:
        self._learner, self._log_end = learner, log_end
        self.versions = Versions(settings.path / "versions", settings.learner.keep_versions)
        first = OnlineModel.load(settings.model)
        gate, holdout = settings.gate, None
        if gate.holdout is not None:
            crosses = make_crosses(settings)
            holdout = Holdout(gate.holdout, first, crosses, gate.slices, gate.min_slice)
        self.gate = Gate(gate, holdout, first)
        self.num_refused = self.num_refused_since = 0
        self.last = Verdict()
        self._published_at = -1
        self._anchor, self._anchored_at = first, learner.guard.counts["learnt"]
        self._answering, self._known_to = 0, 0.0
        number = self.versions.current().version
        if number:
            self._anchor = self._turn_to(number)
            for about in self.versions.known(self.versions.numbers()):
                self.gate.recall(about.get("gate", {}))

    def _turn_to(self, number: int) -> OnlineModel:
        """Compare with the version that answers, and return it."""
        model = OnlineModel.load(self.versions.path(number) / MODEL)
        self.gate.compare_with(model)
        # one that has learnt more than the log has is of another log
        self._known_to = min(self.versions.about(number)["offset"], self._log_end)
        self._answering = number
        return model

    def offer(self) -> int | None:
        """Publish what was learnt since, if it passes; return the number of the version."""
        learner = self._learner
        number = self.versions.current().version
        if number != self._answering:  # someone has rolled back
            self._turn_to(number)
        if learner.offset < self._known_to:  # it learns again what it had learnt before a crash
            return None
        if number and learner.num_cuts == self._published_at:
            return None
        self._published_at = learner.num_cuts
        num_since = learner.guard.counts["learnt"] - self._anchored_at
        recent = list(learner.window)[-num_since:] if num_since else []
        self.last = self.gate.judge(learner.model, self._anchor, recent)
        about = {"offset": learner.offset, "metrics": self.last.metrics}
        verdict = {**about, "time": time.time(), "reasons": list(self.last.reasons)}
        if not self.last.passes:
            self.num_refused += 1
            self.num_refused_since += 1
            self.versions.note(verdict)
            LOG.warning("offset %d is not published: %s", learner.offset, verdict["reasons"])
            return None
        self.num_refused_since = 0
        memory = {"gate": self.gate.memory(self.last)}
        version = self.versions.publish(self._write, about | memory)
        self.versions.note({**verdict, "version": version})
        if version is not None:
            self._answering, self._known_to = version, learner.offset
            self.gate.note_published(self.last)
            if "recent" in self.last.metrics:
                self._anchored_at += num_since
                self._anchor.engine.module.load_state_dict(learner.model.engine.module.state_dict())
        return version

    def _write(self, folder: Path) -> None:
        self._learner.model.engine.save(folder / MODEL)
        if self._learner.crosses is not None:
            self._learner.crosses.save(folder / CROSSES)


def open_learner(settings: OnlineSettings, log: EventLog) -> tuple[Learner, CheckpointStore]:
    """Return a learner that goes on from the newest checkpoint, or begins with the first model.

    Raises:
        CheckpointError: the log does not go as far as the checkpoint, or lacks what it needs.
    """
    learner = Learner(OnlineModel.load(settings.model), settings)
    store = CheckpointStore(settings.path / "checkpoints", keep=2)
    store.take_over()
    if store.steps():
        learner.load(store.load_latest(), log)
    first, end = log.span()
    if learner.offset > end or (learner.offset < first and end > 0):
        raise CheckpointError(
            f"the learner is at offset {learner.offset}, the log holds {first} to {end}",
            fix="use the log that belongs to this folder",
        )
    return learner, store


def run_learner(settings: OnlineSettings, stops: Callable[[], bool]) -> None:
    """Learn until told to stop; then write a checkpoint.

    Args:
        settings: of the service.
        stops: asked between cuts.

    Raises:
        ConfigError: another process learns in this folder.
    """
    torch.set_num_threads(1)
    settings.path.mkdir(parents=True, exist_ok=True)
    said = f"another process learns in {settings.folder}"
    try:
        held = hold(settings.path / "learner.lock", said, stops)
    except ConfigError:
        if stops():
            return
        raise
    log = open_log(settings, writes=False)
    try:
        learner, store = open_learner(settings, log)
        _Loop(settings, learner, store, log).run(stops)
    finally:
        log.close()
        os.close(held)


class _Loop:
    """What is due when: cuts first, then a version, the status, a checkpoint."""

    def __init__(
        self, settings: OnlineSettings, learner: Learner, store: CheckpointStore, log: EventLog
    ) -> None:
        self._settings, self._learner, self._store, self._log = settings, learner, store, log
        self._publisher = Publisher(learner, settings, log.span()[1])
        self._needs: deque[int] = deque([_needs(learner)] * 2, maxlen=2)
        self._saved = learner.offset
        self._history: deque[dict] = deque(maxlen=NUM_POINTS)
        with suppress(OSError, ValueError, KeyError):
            self._history.extend(json.loads((settings.path / STATUS).read_bytes())["history"])

    def run(self, stops: Callable[[], bool]) -> None:
        timing = self._settings.learner
        cuts = Cuts(self._log, self._learner.offset, timing.cut_events)
        due = {self._publish: 0.0, self._write_status: 0.0, self._save: time.monotonic()}
        every = {
            self._publish: seconds(timing.publish_every),
            self._write_status: STATUS_S,
            self._save: seconds(timing.checkpoint_every),
        }
        due[self._save] += every[self._save]
        is_away = False
        while not stops():
            try:
                cut = cuts.take()
                if cut is not None:
                    self._learner.learn(cut)
                now = time.monotonic()
                for what, at in due.items():
                    if now >= at:
                        what()
                        due[what] = time.monotonic() + every[what]
            except CommunicationError as error:  # what was learnt stays as it is
                if not is_away:
                    LOG.warning("the learner waits: %s", error.message)
                is_away, cut = True, None
                with suppress(FileNotFoundError):
                    os.utime(self._settings.path / STATUS)
                time.sleep(AWAY_S)
            else:
                is_away = False
            if cut is None:
                time.sleep(IDLE_S)
        self._save()
        self._publish()
        with suppress(CommunicationError):
            self._write_status()

    def _publish(self) -> None:
        version = self._publisher.offer()
        if version is not None:
            self._note_point()

    def _note_point(self) -> None:
        metrics = self._learner.recent[0].metrics()
        point = {"time": time.time(), "offset": self._learner.offset}
        if self._history and point["time"] - self._history[-1]["time"] < 1:
            return
        self._history.append({**point, **{k: metrics.get(k) for k in ("auc", "loss", "drift")}})

    def _save(self) -> None:
        if self._saved != self._learner.offset:
            self._store.save(self._learner.checkpoint())
            self._saved = self._learner.offset
            self._needs.append(_needs(self._learner))

    def _write_status(self) -> None:
        learner, publisher = self._learner, self._publisher
        pointer = publisher.versions.current()
        newest = self._log.read(learner.offset, 1)
        status = {
            "time": time.time(),
            "offset": learner.offset,
            "lag_events": max(0, self._log.span()[1] - learner.offset),
            "lag_s": time.time() - newest[0].time if newest else 0.0,
            "cuts": learner.num_cuts,
            "updates": learner.num_updates,
            "skipped": learner.num_skipped,
            "waiting": learner.join.num_waiting,
            "join": learner.join.counts,
            "guard": learner.guard.counts,
            "clients": learner.guard.loudest(),
            "labels": {
                name: recent.metrics()
                for name, recent in zip(learner.model.labels, learner.recent, strict=True)
            },
            "version": pointer.version,
            "is_pinned": pointer.is_pinned,
            "refused": publisher.num_refused,
            "refused_since": publisher.num_refused_since,
            "gate": {
                "reasons": list(publisher.last.reasons), "metrics": publisher.last.metrics,
            },
            "checkpoint": self._saved,
            "trim_before": min(self._needs),
            "history": list(self._history),
        }  # fmt: skip
        with replacing(self._settings.path / STATUS) as draft:
            draft.write_text(json.dumps(status), encoding="utf-8")


def _needs(learner: Learner) -> int:
    oldest = learner.join.oldest
    return learner.offset if oldest is None else min(oldest, learner.offset)


def read_status(folder: Path) -> dict:
    """Return what the learner said last; empty: nothing yet."""
    try:
        return json.loads((folder / STATUS).read_bytes())
    except (OSError, ValueError):
        return {}
