"""The service as an ASGI application: events in, candidates ranked, and what there is to see.

```
POST /v1/events     an event, {"events": [...]}; answered when the disk has them
POST /v1/rank       {"user": {...}, "context": {...}, "candidates": [{...}, ...]}
GET  /v1/status     what the page / shows
POST /v1/rollback   {"to": 12}; by default the version before; POST /v1/release ends it
GET  /metrics       for Prometheus
```
"""

import asyncio
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from deepseek.deploy.service.app import explain_errors
from deepseek.deploy.service.interface import OPEN_PAGES, OPENAPI, add_interface
from deepseek.deploy.service.measures import Counting
from deepseek.deploy.service.probes import start_probes
from deepseek.deploy.service.protection import Limits, Protection
from deepseek.deploy.service.question import aside, parse_json
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.tokens import hash_token
from deepseek.errors import CommunicationError, DataError, DeepSeekError
from deepseek.recsys.online.event_log import Entry, EventLog, LogFullError, Receipt
from deepseek.recsys.online.events import EventReader, tick_entry
from deepseek.recsys.online.learner_process import read_status
from deepseek.recsys.online.measures import OnlineMeasures
from deepseek.recsys.online.ranker import Ranker
from deepseek.recsys.online.settings import OnlineSettings, seconds
from deepseek.recsys.online.versions import Versions
from deepseek.version import __version__

LOG = logging.getLogger("deepseek.online")
REFRESH_S = 0.05
WAITING_TICK_S = 1.0
TRIM_S, SAY_AGAIN_S = 60.0, 60.0
MANY_EVENTS = 64
"""Of a request: so many are checked in a thread, since it takes half a millisecond."""


class State:
    """What the routes share.

    Args:
        settings: of the service.
        log: to write to.
        ranker: with the version that answers.
    """

    def __init__(self, settings: OnlineSettings, log: EventLog, ranker: Ranker) -> None:
        self.settings, self.log, self.ranker = settings, log, ranker
        self.measures = OnlineMeasures()
        self.versions = Versions(settings.path / "versions", settings.learner.keep_versions)
        kinds = [label.event for label in settings.join.labels.values()]
        self.reader = EventReader(settings.join.key, kinds, ranker.columns)
        self.end = log.span()[1]
        """Behind the newest event that was taken here."""
        self._ticked, self._ticked_at, self._trimmed_at = -1, 0.0, 0.0

    def status(self) -> dict:
        """Return what is known of learner and versions."""
        status = read_status(self.settings.path)
        pointer = self.versions.current()
        known = self.versions.known(self.versions.numbers()[-10:])
        return {
            **status, "version": pointer.version, "is_pinned": pointer.is_pinned,
            "ranks_with": self.ranker.answers.version, "versions": known, "end": self.end,
        }  # fmt: skip

    async def look_after(self) -> None:
        """Ask for updates, take new versions, and forget what is old, until cancelled."""
        tick_s = seconds(self.settings.learner.tick)
        said, said_at = "", 0.0
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self.ranker.refresh)
                if time.monotonic() >= self._ticked_at + tick_s:
                    await self._tick()
                if time.monotonic() >= self._trimmed_at + TRIM_S:
                    self._trimmed_at = time.monotonic()
                    await asyncio.to_thread(self._trim)
            except Exception as error:  # a log that does not answer for a while, most likely
                if str(error) != said or time.monotonic() >= said_at + SAY_AGAIN_S:
                    LOG.warning("%s", error)
                    said, said_at = str(error), time.monotonic()

    async def _tick(self) -> None:
        """Ask for an update, where there is something to learn from or time has to pass."""
        is_new = self.end > self._ticked
        if not is_new:
            waits = time.monotonic() >= self._ticked_at + WAITING_TICK_S
            if not waits or not read_status(self.settings.path).get("waiting"):
                return
        self._ticked_at = time.monotonic()
        receipts = await asyncio.wrap_future(self.log.submit([tick_entry(self.end)]))
        self.end = max(self.end, receipts[0].offset + 1)
        self._ticked = self.end

    def _trim(self) -> None:
        before = read_status(self.settings.path).get("trim_before", 0)
        kept_s = seconds(self.settings.log.retention)
        self.log.trim(before, time.time() - kept_s)

    async def take(self, contents: list, client: str | None) -> list[Receipt]:
        """Return receipts of events, when the disk has them.

        Raises:
            Refusal: 422, one is no event; 429, too many wait; 503, the log does not answer, and
                they may have been taken or not.
        """
        if len(contents) < MANY_EVENTS:
            entries = self._entries(contents, client)
        else:
            entries = await asyncio.to_thread(self._entries, contents, client)
        try:
            done = self.log.submit(entries)
        except LogFullError as error:
            raise Refusal(429, error.message, fix=error.fix or "", retry_after_s=1) from None
        try:
            receipts = await asyncio.wrap_future(done)
        except CommunicationError:
            raise Refusal(
                503, "the log does not answer", fix="send them again: what was taken counts once",
                retry_after_s=1,
            ) from None  # fmt: skip
        self.end = max([self.end, *(each.offset + 1 for each in receipts)])
        return receipts

    def _entries(self, contents: list, client: str | None) -> list[Entry]:
        entries = []
        for place, content in enumerate(contents):
            try:
                entries.append(self.reader.entry(content, client))
            except DataError as error:
                raise Refusal(422, f"event {place}: {error.message}", fix=error.fix or "") from None
        return entries


def make_app(
    settings: OnlineSettings,
    log: EventLog,
    ranker: Ranker,
    hashes: tuple[str, ...] = (),
    *,
    is_loopback: bool = True,
    probes: socket.socket | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        settings: of the service.
        log: to write to; closed with the application.
        ranker: with the version that answers.
        hashes: of the tokens that are let in; empty: no token is asked for.
        is_loopback: whether only this machine reaches it.
        probes: listens for the probes of a cluster, which are answered there.
    """
    state = State(settings, log, ranker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answering = None if probes is None else await start_probes(lambda: True, probes)
        looking = asyncio.create_task(state.look_after())
        yield
        if answering is not None:
            answering.close()
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await asyncio.to_thread(log.close)

    app = FastAPI(
        title="deepseek online", version=__version__, lifespan=lifespan,
        description="Learns from events, and ranks.", openapi_url=OPENAPI, docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    explain_errors(app)
    add_interface(app, has_tokens=bool(hashes))
    _add_work(app, state, has_tokens=bool(hashes))
    _add_versions(app, state)
    _add_views(app, state)
    app.add_middleware(Counting, measures=state.measures.requests)
    app.add_middleware(
        Protection, limits=Limits(), hashes=hashes, is_loopback=is_loopback, open_pages=OPEN_PAGES
    )  # fmt: skip
    return app


def _add_work(app: FastAPI, state: State, *, has_tokens: bool) -> None:
    @app.post("/v1/events", tags=["events"])
    async def events(request: Request) -> JSONResponse:
        """Take one event, or several; they are on the disk when this is answered.

        An event that was taken before gets the answer it got then.
        """
        body = await request.body()
        content = await aside(len(body), parse_json, body)
        several = isinstance(content, dict) and "events" in content
        contents = content["events"] if several else [content]  # pyright: ignore
        limit = state.settings.server.max_events
        if not isinstance(contents, list) or len(contents) > limit:
            raise Refusal(422, f"events is no list of up to {limit}", fix="send fewer at a time")
        client = None
        if has_tokens:
            client = hash_token(request.headers["authorization"].partition(" ")[2].strip())[:12]
        receipts = await state.take(contents, client)
        state.measures.count(receipts)
        wrong = [place for place, each in enumerate(receipts) if not each.is_same]
        if wrong:
            raise Refusal(
                409, f"event {wrong[0]} has the id of another one; the others were taken",
                fix="give every event an id of its own",
            )  # fmt: skip
        offsets = [each.offset for each in receipts]
        return JSONResponse({"offsets": offsets} if several else {"offset": offsets[0]})

    @app.post("/v1/rank", tags=["ranking"])
    async def rank(request: Request) -> JSONResponse:
        """Order candidates by the probability of the first label.

        `offset`: the version that answered has learnt the events before it.
        """
        content = parse_json(await request.body())
        shared, candidates, top_k = _read_question(content, state.settings)
        try:
            found = state.ranker.rank(shared, candidates, time.time(), top_k)
        except DataError as error:
            raise Refusal(422, error.message, fix=error.fix or "") from None
        return JSONResponse(
            {
                "request_id": uuid.uuid4().hex,
                "version": found.version,
                "offset": found.offset,
                "order": found.order,
                "probs": {name: [round(p, 6) for p in each] for name, each in found.probs.items()},
            }
        )


def _add_versions(app: FastAPI, state: State) -> None:
    @app.post("/v1/rollback", tags=["versions"])
    async def rollback(request: Request) -> dict:
        """Let an older version answer, and keep it."""
        body = await request.body()
        content = parse_json(body) if body else {}
        to = content.get("to") if isinstance(content, dict) else None
        if to is not None and not isinstance(to, int):
            raise Refusal(422, "to is no version", fix='send {"to": 12}, or nothing')
        try:
            # the learner may hold the lock for as long as a version takes to write
            pointer = await asyncio.to_thread(state.versions.roll_back, to)
        except DeepSeekError as error:
            raise Refusal(409, error.message, fix=error.fix or "") from None
        except OSError as error:
            raise _unwritable(error) from error
        await asyncio.to_thread(state.ranker.refresh)
        return {"version": pointer.version, "is_pinned": pointer.is_pinned}

    @app.post("/v1/release", tags=["versions"])
    async def release() -> dict:
        """Let new versions answer again."""
        try:
            pointer = await asyncio.to_thread(state.versions.release)
        except OSError as error:
            raise _unwritable(error) from error
        return {"version": pointer.version, "is_pinned": pointer.is_pinned}


def _unwritable(error: OSError) -> Refusal:
    return Refusal(
        409, f"versions cannot be written from here: {error.strerror}",
        fix="deepseek online rollback, or release, where the learner runs",
    )  # fmt: skip


def _read_question(content: object, settings: OnlineSettings) -> tuple[dict, list, int | None]:
    """Return shared columns, candidates and how many are wanted.

    Raises:
        Refusal: 422, it is no question.
    """
    fix = 'send {"user": {...}, "context": {...}, "candidates": [{...}, ...], "top_k": 10}'
    if not isinstance(content, dict):
        raise Refusal(422, "the body is no object", fix=fix)
    if unknown := content.keys() - {"user", "context", "candidates", "top_k"}:
        raise Refusal(422, f"{sorted(unknown)[0]!r} is unknown", fix=fix)
    user, context = content.get("user", {}), content.get("context", {})
    candidates, top_k = content.get("candidates"), content.get("top_k")
    limit = settings.server.max_candidates
    if not isinstance(candidates, list) or not 1 <= len(candidates) <= limit:
        raise Refusal(422, f"candidates is no list of 1 to {limit}", fix=fix)
    if not all(isinstance(each, dict) for each in (user, context, *candidates)):
        raise Refusal(422, "user, context or a candidate is no object", fix=fix)
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise Refusal(422, f"top_k={str(top_k)[:20]} is no number from 1 on", fix=fix)
    return {**user, **context}, candidates, top_k


def _add_views(app: FastAPI, state: State) -> None:
    page = files("deepseek.recsys.online").joinpath("dashboard.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def start() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
        policy += " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/v1/status", tags=["state"])
    async def status() -> Response:
        """Return metrics, lag, versions, clients and what the gate said."""
        found = await asyncio.to_thread(state.status)
        return Response(json.dumps(found), media_type="application/json")

    @app.get("/health", tags=["state"])
    async def health() -> dict:
        """Say that the service runs."""
        return {"status": "ok", "library": __version__}

    @app.get("/ready", tags=["state"])
    async def ready() -> dict:
        """Say which version answers."""
        return {"status": "ready", "version": state.ranker.answers.version}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return the counters, for Prometheus."""
        state.measures.take(await asyncio.to_thread(state.status))
        return Response(
            state.measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
