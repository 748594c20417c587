"""The service as an ASGI application: routes, and what goes wrong in them.

Beside a simple `/predict` it speaks the Open Inference Protocol, version 2 (`/v2/...`), which
clients of KServe and Triton speak.
"""

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from deepseek.deploy.service.answers import Predictions
from deepseek.deploy.service.interface import OPEN_PAGES, OPENAPI, add_interface
from deepseek.deploy.service.measures import Counting, Measures
from deepseek.deploy.service.probes import start_probes
from deepseek.deploy.service.protection import Limits, Protection
from deepseek.deploy.service.protocol import add_protocol
from deepseek.deploy.service.question import (
    answer,
    in_time,
    look_at_volume,
    parse_json,
    read_samples,
)
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.shelf import Shelf, Version
from deepseek.deploy.service.spans import entities_of, find_pattern, texts_of
from deepseek.deploy.service.volumes import Mask
from deepseek.version import __version__

LOG = logging.getLogger("deepseek.service")
MAX_TOP_K = 1000
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "inputs": {"description": "Numbers: one sample, or a list of samples."},
                        "images": {
                            "type": "array", "items": {"type": "string", "format": "byte"},
                            "description": "Pictures in base64.",
                        },
                        "text": {"type": "string"},
                        "texts": {"type": "array", "items": {"type": "string"}},
                        "row": {"type": "object", "description": "Of a table: column to value."},
                        "rows": {"type": "array", "items": {"type": "object"}},
                    },
                    "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
                },
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/gzip": {"schema": {"type": "string", "format": "binary"}},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}  # fmt: skip
_MASK = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("false", "0", "no", "off", "f", "n"), False),
}
_QUERY = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in {
            "model": {"type": "string", "default": ""},
            "top_k": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
            "mask": {"type": "boolean", "default": False},
            "spans": {"type": "string", "default": ""},
        }.items()
    ],
}
_ERRORS: dict[int | str, dict] = {
    status: {"description": what}
    for status, what in {
        400: "The body cannot be read.", 401: "No valid token.", 404: "No such model or version.",
        408: "The body came too slowly.", 409: "The version cannot be served.",
        413: "The body is too large, or has too many samples.", 415: "The body is of another type.",
        421: "Another host is meant.", 422: "The model cannot take it.",
        429: "Too many samples wait.", 503: "The model is not ready.",
        504: "The answer took too long.",
    }.items()
}  # fmt: skip


def make_app(
    shelf: Shelf,
    measures: Measures,
    limits: Limits,
    hashes: tuple[str, ...] = (),
    *,
    is_loopback: bool = True,
    probes: socket.socket | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        shelf: the models, loaded.
        measures: counters.
        limits: of a request.
        hashes: of the tokens that are let in; empty: no token is asked for.
        is_loopback: whether only this machine reaches it.
        probes: listens for the probes of a cluster, which are answered there.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answering = None if probes is None else await start_probes(lambda: shelf.is_ready, probes)
        yield
        if answering is not None:
            answering.close()
        await shelf.close()

    app = FastAPI(
        title="deepseek",
        version=__version__,
        description="Predictions of the models that are served here.",
        lifespan=lifespan,
        responses=_ERRORS,
        redirect_slashes=False,  # to an address that a proxy may not have
        openapi_url=OPENAPI, docs_url=None, redoc_url=None,
    )  # fmt: skip

    explain_errors(app)
    add_interface(app, has_tokens=bool(hashes))
    _add_predictions(app, shelf, limits)
    add_protocol(app, shelf, limits)
    _add_administration(app, shelf, measures)
    app.add_middleware(Counting, measures=measures)
    app.add_middleware(
        Protection, limits=limits, hashes=hashes, is_loopback=is_loopback, open_pages=OPEN_PAGES,
        on_refusal=lambda status: measures.requests.labels("refused", status).inc(),
    )  # fmt: skip
    return app


def explain_errors(app: FastAPI) -> None:
    """Answer every error of an application with what happened and what to do."""

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> JSONResponse:
        body = {"error": f"{request.method} {request.url.path}: {error.detail}", "fix": "see /docs"}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def correct(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return JSONResponse({"error": wrong, "fix": "see /docs"}, 422)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        LOG.exception("%s %s", request.method, request.url.path)
        body = {"error": "the service failed", "fix": "see its log"}
        return JSONResponse(body, 500)


_VERSION = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object", "required": ["version"],
                    "properties": {"version": {"type": "string"}},
                },
            },
        },
    },
}  # fmt: skip


async def _compute(request: Request, version: Version, limits: Limits) -> np.ndarray:
    content_type = request.headers.get("content-type", "")
    body = await request.body()
    async with in_time(limits):
        samples, _ = await read_samples(body, content_type, version, limits)
    return await version.queue.submit(samples, limits.timeout_s)


async def _segment(request: Request, version: Version, limits: Limits, mask: bool) -> Response:
    content_type = request.headers.get("content-type", "")
    body = await request.body()
    if mask and version.finds_centers:
        raise Refusal(422, "mask=true, and a detector has none", fix="leave it out")
    with version.used():
        found = await look_at_volume(body, content_type, version, limits)
    about = {"model": version.name, "version": version.version}
    if not isinstance(found, Mask):
        return JSONResponse({**about, "findings": found})
    if mask:
        name = {"Content-Disposition": 'attachment; filename="mask.nii.gz"'}
        return Response(found.content, media_type="application/gzip", headers=name)
    return JSONResponse({**about, "ml": found.ml})


async def _with_spans(
    request: Request,
    version: Version,
    rows: np.ndarray,
    top_k: int,
    pattern: Callable[[str], list[dict]] | None,
) -> list[dict]:
    """Return a prediction for each text, with the `spans` that a model or a pattern finds."""
    texts = texts_of(await request.body())
    is_tagger = version.finds_entities and not version.spec.tasks
    found = [{} for _ in texts] if is_tagger else answer(rows, version, top_k)
    spans = [[] for _ in texts]
    if version.finds_entities:
        spans = await entities_of(texts, list(rows), version)
    if pattern is not None:
        spans = [own + pattern(text) for own, text in zip(spans, texts, strict=True)]
    return [{**each, "spans": own} for each, own in zip(found, spans, strict=True)]


class _Asked(NamedTuple):
    """What the query of `/predict` says."""

    model: str = ""
    top_k: int = 5
    mask: bool = False
    spans: str = ""


def _read_query(request: Request) -> _Asked:
    """Return the query: by hand, as FastAPI took a seventh of the time of a request for it.

    Raises:
        Refusal: 422, a value is not what it should be.
    """
    if not request.scope["query_string"]:
        return _Asked()
    given = request.query_params
    top_k, mask = given.get("top_k", "5"), given.get("mask", "false").lower()
    if not (top_k.isdecimal() and len(top_k) <= 4 and 1 <= int(top_k) <= MAX_TOP_K):
        raise Refusal(422, f"top_k={top_k[:40]!r}", fix=f"give 1 to {MAX_TOP_K}")
    if mask not in _BOOLEANS:
        raise Refusal(422, f"mask={mask[:40]!r}", fix="give true or false")
    return _Asked(given.get("model", ""), int(top_k), _BOOLEANS[mask], given.get("spans", ""))


def _add_predictions(app: FastAPI, shelf: Shelf, limits: Limits) -> None:
    page = files("deepseek.deploy.service").joinpath("page.html").read_text(encoding="utf-8")

    @app.post(
        "/predict", openapi_extra={**_BODY, **_QUERY}, tags=["predictions"],
        responses={200: {"model": Predictions, "content": _MASK}},
    )  # fmt: skip
    async def predict(request: Request) -> Response:
        """Classify a picture, a text, its words, samples, rows, or the voxels of a volume.

        With `spans=tickers` each text comes with those that stand in it. Of a volume the answer is
        the millilitres of each class, or with `mask` a `.nii.gz` file; of a detector the findings.
        """
        asked = _read_query(request)
        version, top_k = shelf.active(asked.model), asked.top_k
        if version.takes_volumes:
            return await _segment(request, version, limits, asked.mask)
        if asked.mask:
            raise Refusal(422, f"{version.name} makes no masks", fix="leave mask out")
        pattern = find_pattern(asked.spans)
        with version.used():
            rows = await _compute(request, version, limits)
            if version.finds_entities or pattern is not None:
                async with in_time(limits):
                    predictions = await _with_spans(request, version, rows, top_k, pattern)
            else:
                predictions = answer(rows, version, top_k)
        # as a response of its own: FastAPI would look through it, which takes longer than the rest
        return JSONResponse(
            {
                "model": version.name,
                "version": version.version,
                "predictions": predictions,
            }
        )

    @app.get("/", include_in_schema=False)  # for everybody: it says nothing of the models
    async def start() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
        policy += " img-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/health", tags=["state"])
    async def health() -> dict:
        """Say that the service runs."""
        return {"status": "ok", "library": __version__}

    @app.get("/ready", tags=["state"])
    async def ready() -> dict:
        """Say whether every model answers."""
        shelf.check_ready()
        return {"status": "ready", "models": shelf.state()}


def _add_administration(app: FastAPI, shelf: Shelf, measures: Measures) -> None:
    def note() -> None:
        measures.active.clear()
        for state in shelf.state():
            if state["active"] is not None:
                measures.active.labels(state["name"], state["active"]).set(1)

    @app.get("/models", tags=["models"])
    async def models() -> dict:
        """List the models and their versions."""
        return {"models": shelf.state()}

    @app.post("/models/{model}/activate", tags=["models"], openapi_extra=_VERSION)
    async def activate(request: Request, model: str) -> dict:
        """Load a version beside the one that answers, and put it in its place."""
        content = parse_json(await request.body())
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, str):
            raise Refusal(400, "the body names no version", fix='send {"version": "..."}')
        active = await shelf.activate(model, version)
        note()
        return {"model": active.name, "active": active.version}

    @app.post("/models/{model}/rollback", tags=["models"])
    async def rollback(model: str) -> dict:
        """Put the version back that answered before; sent again, it is refused (409)."""
        active = await shelf.roll_back(model)
        note()
        return {"model": active.name, "active": active.version}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return the counters, for Prometheus."""
        note()
        measures.waiting.set(shelf.num_waiting)
        return Response(measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
