"""What the service counts, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deepseek_requests", "Requests, by route and status.", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            "deepseek_request_seconds", "From the last byte of a request to its answer.",
            ("route",), buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "deepseek_batch_samples", "Samples that were computed together.", ("model", "version"),
            buckets=BATCHES, registry=self.registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "deepseek_batch_seconds", "Time of a batch.", ("model", "version"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.active = Gauge(
            "deepseek_model_active", "1 for the version that answers.", ("model", "version"),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "deepseek_waiting_samples", "Samples that wait for a model.", registry=self.registry
        )

    def page(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)


class Counting:
    """ASGI middleware that counts requests and takes their time."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app, self._measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and note how long it took."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-content-type-options", b"nosniff"))
                route = getattr(scope.get("route"), "path", "other")
                self._measures.requests.labels(route, message["status"]).inc()
                self._measures.latency.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, note)
