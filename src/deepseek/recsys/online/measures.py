"""What an online-learning service counts, for Prometheus."""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge

from deepseek.deploy.service.measures import Measures
from deepseek.recsys.online.event_log import Receipt

_NUMBERS = {
    "offset": "Offset up to which was learnt.",
    "end": "Offset of the next event.",
    "lag_events": "Events that are not learnt yet.",
    "lag_s": "Age of the oldest event that is not learnt yet, seconds.",
    "updates": "Updates of the model.",
    "skipped": "Updates that were not finite.",
    "waiting": "Impressions whose labels may still come.",
    "refused": "Versions that did not pass the gate, since the learner began.",
    "refused_since": "Versions that did not pass since one did; above 0: an old one answers.",
    "is_pinned": "1 where a version is kept by a rollback.",
}
_METRICS = ("auc", "loss", "rate", "calibration", "drift")


class OnlineMeasures:
    """Counters of one service.

    Attributes:
        requests: those that every service has.
    """

    def __init__(self) -> None:
        self.requests = Measures()
        registry = self.requests.registry
        self.events = Counter(
            "deepseek_online_events", "Events, by what became of them.", ("result",),
            registry=registry,
        )  # fmt: skip
        self._version = Gauge(
            "deepseek_online_version", "The version that answers.", registry=registry
        )
        self._numbers = {
            name: Gauge(f"deepseek_online_{name}", about, registry=registry)
            for name, about in _NUMBERS.items()
        }
        self._metrics = Gauge(
            "deepseek_online_recent", "Of what was predicted before it was learnt.",
            ("label", "metric"), registry=registry,
        )  # fmt: skip
        self._counts = Gauge(
            "deepseek_online_examples", "By what became of them.", ("part", "result"),
            registry=registry,
        )  # fmt: skip

    def count(self, receipts: Sequence[Receipt]) -> None:
        """Count events that were taken."""
        num_new = sum(each.is_new for each in receipts)
        self.events.labels("new").inc(num_new)
        self.events.labels("repeated").inc(len(receipts) - num_new)

    def take(self, status: dict) -> None:
        """Take what the learner said, and which version ranks."""
        self._version.set(status.get("ranks_with", 0))
        for name, gauge in self._numbers.items():
            gauge.set(status.get(name, 0))
        for label, metrics in status.get("labels", {}).items():
            for name in _METRICS:
                if metrics.get(name) is not None:
                    self._metrics.labels(label, name).set(metrics[name])
        for part in ("join", "guard"):
            for name, count in status.get(part, {}).items():
                self._counts.labels(part, name).set(count)

    def page(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return self.requests.page()
