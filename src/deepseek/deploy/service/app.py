"""The service as an ASGI application: routes, and what goes wrong in them.

Beside a simple `/predict` it speaks the Open Inference Protocol, version 2 (`/v2/...`), which
clients of KServe and Triton speak.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from deepseek.deploy.service.measures import Counting, Measures
from deepseek.deploy.service.probes import start_probes
from deepseek.deploy.service.protection import Limits, Protection
from deepseek.deploy.service.question import (
    answer,
    aside,
    encode_texts,
    look_at_volume,
    parse_json,
    read_samples,
    to_samples,
)
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.shelf import Shelf, Version
from deepseek.deploy.service.spans import entities_of, find_pattern, texts_of
from deepseek.deploy.service.volumes import SHAPE_OF_CENTERS, Mask
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
_ERRORS: dict[int | str, dict] = {
    status: {"description": what}
    for status, what in {
        400: "The body cannot be read.", 401: "No valid token.", 404: "No such model or version.",
        408: "The body came too slowly.", 409: "The version cannot be served.",
        413: "The body is too large.", 415: "The body is of another type.",
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
    probes: tuple[str, int] | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        shelf: the models, loaded.
        measures: counters.
        limits: of a request.
        hashes: of the tokens that are let in; empty: no token is asked for.
        is_loopback: whether only this machine reaches it.
        probes: address and port that answer the probes of a cluster.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answering = await start_probes(shelf, *probes) if probes is not None else None
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
    )

    explain_errors(app)
    _add_predictions(app, shelf, limits)
    _add_protocol(app, shelf, limits)
    _add_administration(app, shelf, measures)
    app.add_middleware(Counting, measures=measures)
    app.add_middleware(Protection, limits=limits, hashes=hashes, is_loopback=is_loopback)
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


_LABELS = "UINT16"
_DATATYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
_TENSORS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {
                            "type": "array", "minItems": 1, "maxItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["name", "shape", "datatype", "data"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "shape": {"type": "array", "items": {"type": "integer"}},
                                    "datatype": {"type": "string"},
                                    "data": {"type": "array"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
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


def _read_tensor(content: object) -> tuple[np.ndarray | list, dict]:
    """Return the one tensor of a request, texts as a list; and the id that its answer repeats.

    Raises:
        Refusal: 400, it is not as the protocol says.
    """
    try:
        (tensor,) = content["inputs"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
        data, shape = np.array(tensor["data"]), [int(size) for size in tensor["shape"]]
        array = data.reshape(shape)
        is_text = tensor.get("datatype") == "BYTES"
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise Refusal(
            400, f"the body is no request of the protocol: {str(error)[:120]}",
            fix='send {"inputs": [{"name": "inputs", "shape": [...], "datatype": "FP32",'
            ' "data": [...]}]}',
        ) from error  # fmt: skip
    id_ = content.get("id") if isinstance(content, dict) else None
    known = {"id": id_} if isinstance(id_, str) else {}
    return (array.reshape(-1).tolist() if is_text else array), known


async def _compute(request: Request, version: Version, limits: Limits) -> tuple[np.ndarray, bool]:
    content_type = request.headers.get("content-type", "")
    body = await request.body()
    with version.used():
        samples, is_single = await read_samples(body, content_type, version, limits)
        return await version.queue.submit(samples, limits.timeout_s), is_single


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
    found = [{} for _ in texts] if version.finds_entities else answer(rows, version, top_k)
    spans = [[] for _ in texts]
    if version.finds_entities:
        spans = await entities_of(texts, list(rows), version)
    if pattern is not None:
        spans = [own + pattern(text) for own, text in zip(spans, texts, strict=True)]
    return [{**each, "spans": own} for each, own in zip(found, spans, strict=True)]


def _check_ready(shelf: Shelf) -> None:
    if not shelf.is_ready:
        raise Refusal(503, "a model is not loaded", fix="try again later", retry_after_s=2)


def _add_predictions(app: FastAPI, shelf: Shelf, limits: Limits) -> None:
    page = files("deepseek.deploy.service").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/predict", openapi_extra=_BODY, tags=["predictions"])
    async def predict(
        request: Request, model: str = "", top_k: int = 5, mask: bool = False, spans: str = ""
    ) -> Response:
        """Classify a picture, a text, its words, samples, or the voxels of a volume.

        With `spans=tickers` each text comes with those that stand in it. Of a volume the answer is
        the millilitres of each class, or with `mask` a `.nii.gz` file; of a detector the findings.
        """
        if not 1 <= top_k <= MAX_TOP_K:
            raise Refusal(422, f"top_k={top_k}", fix=f"give 1 to {MAX_TOP_K}")
        version = shelf.active(model)
        if version.takes_volumes:
            return await _segment(request, version, limits, mask)
        pattern = find_pattern(spans)
        rows, _ = await _compute(request, version, limits)
        if version.finds_entities or pattern is not None:
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

    @app.get("/", include_in_schema=False)
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
        _check_ready(shelf)
        return {"status": "ready", "models": shelf.state()}


def _add_protocol(app: FastAPI, shelf: Shelf, limits: Limits) -> None:
    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict:
        """Say that the service runs."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"])
    async def ready() -> dict:
        """Say whether every model answers."""
        _check_ready(shelf)
        return {"ready": True}

    @app.get("/v2/models/{model}", tags=["v2"])
    async def metadata(model: str) -> dict:
        """Describe a model."""
        version = shelf.active(model)
        datatype = _DATATYPES.get(version.spec.fields["inputs"].dtype, "FP32")
        sample = [-1] if version.takes_any_length else version.sample_shape
        inputs = {"name": "inputs", "datatype": datatype, "shape": [-1, *sample]}
        if version.takes_texts:
            inputs = {"name": "text", "datatype": "BYTES", "shape": [-1]}
        outputs = {"name": "probs", "datatype": "FP32", "shape": [-1, len(version.class_names)]}
        if version.takes_volumes:
            sizes = list(version.sample_shape[1:])
            outputs = {"name": "labels", "datatype": _LABELS, "shape": [-1, *sizes]}
        if version.finds_centers:
            outputs = {"name": "centers", "datatype": "FP32", "shape": [-1, *SHAPE_OF_CENTERS]}
        return {
            "name": version.name, "versions": shelf.list_versions()[version.name],
            "platform": "deepseek", "inputs": [inputs], "outputs": [outputs],
        }  # fmt: skip

    @app.get("/v2/models/{model}/ready", tags=["v2"])
    async def model_ready(model: str) -> dict:
        """Say whether a model answers."""
        return {"name": shelf.active(model).name, "ready": True}

    @app.post("/v2/models/{model}/infer", tags=["v2"], openapi_extra=_TENSORS)
    async def infer(request: Request, model: str) -> JSONResponse:
        """Compute with numbers, or texts."""
        version = shelf.active(model)
        body = await request.body()
        with version.used():
            found, known = _read_tensor(await aside(len(body), parse_json, body))
            if isinstance(found, list):
                samples = await encode_texts(found, version, limits)
            else:
                samples, _ = await aside(len(body), to_samples, found, version, limits)
            rows = await version.queue.submit(samples, limits.timeout_s)
        data = rows.ravel().tolist()
        name, kind = ("labels", _LABELS) if version.takes_volumes else ("probs", "FP32")
        if version.finds_centers:
            name, kind = "centers", "FP32"
        shape = [len(rows), *rows[0].shape]
        output = {"name": name, "datatype": kind, "shape": shape, "data": data}
        return JSONResponse(
            {"model_name": version.name, "model_version": version.version, **known,
             "outputs": [output]}
        )  # fmt: skip


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
        """Put the version back that answered before."""
        active = await shelf.roll_back(model)
        note()
        return {"model": active.name, "active": active.version}

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Return the counters, for Prometheus."""
        note()
        measures.waiting.set(shelf.num_waiting)
        return Response(measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
