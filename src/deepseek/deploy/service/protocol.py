"""The Open Inference Protocol, version 2, as KServe and Triton speak it: `/v2/...`."""

from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from deepseek.deploy.service.answers import Inference
from deepseek.deploy.service.protection import Limits
from deepseek.deploy.service.question import (
    aside,
    encode_texts,
    has_text,
    in_time,
    parse_json,
    parts_of,
    reading,
    to_rows,
    to_samples,
)
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.shelf import Shelf, Version
from deepseek.deploy.service.volumes import shape_of_centers
from deepseek.models.joint_outputs import is_of_tokens
from deepseek.version import __version__

_DATATYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
_ALL_DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BYTES",
)  # fmt: skip
IGNORED = {"binary_data", "binary_data_output"}
"""Parameters of a request that are no settings of the answer: Triton's client always says that it
could read a binary one, and reads JSON as well."""
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
                        "outputs": {
                            "type": "array", "items": {"type": "object", "required": ["name"]},
                        },
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

_INFER: dict[str, Any] = {"openapi_extra": _TENSORS, "responses": {200: {"model": Inference}}}


def add_protocol(app: FastAPI, shelf: Shelf, limits: Limits) -> None:
    """Add the routes of the protocol to an application."""

    @app.get("/v2", tags=["v2"])
    async def server() -> dict:
        """Describe the service."""
        return {"name": "deepseek", "version": __version__, "extensions": []}

    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict:
        """Say that the service runs."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"])
    async def ready() -> dict:
        """Say whether every model answers."""
        shelf.check_ready()
        return {"ready": True}

    @app.get("/v2/models/{model}", tags=["v2"])
    async def metadata(model: str) -> dict:
        """Describe a model."""
        return _describe(shelf.active(model), shelf)

    @app.get("/v2/models/{model}/versions/{version}", tags=["v2"])
    async def metadata_of_version(model: str, version: str) -> dict:
        """Describe a version that is loaded."""
        return _describe(shelf.loaded(model, version), shelf)

    @app.get("/v2/models/{model}/ready", tags=["v2"])
    async def model_ready(model: str) -> dict:
        """Say whether a model answers."""
        return {"name": shelf.active(model).name, "ready": True}

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["v2"])
    async def version_ready(model: str, version: str) -> dict:
        """Say whether a version is loaded, and answers."""
        return {"name": shelf.loaded(model, version).name, "ready": True}

    @app.post("/v2/models/{model}/infer", tags=["v2"], **_INFER)
    async def infer(request: Request, model: str) -> JSONResponse:
        """Compute with numbers, or texts; rows of a table are texts of JSON."""
        return await _infer(request, shelf.active(model), limits)

    @app.post("/v2/models/{model}/versions/{version}/infer", tags=["v2"], **_INFER)
    async def infer_with_version(request: Request, model: str, version: str) -> JSONResponse:
        """Compute with a version that is loaded."""
        return await _infer(request, shelf.loaded(model, version), limits)


async def _infer(request: Request, version: Version, limits: Limits) -> JSONResponse:
    body = await request.body()
    with version.used():
        async with in_time(limits):
            async with reading:
                samples, known, wanted = await aside(len(body), _read, body, version, limits)
            if version.takes_texts:
                samples = await encode_texts(samples, version, limits)
        rows = await version.queue.submit(samples, limits.timeout_s)
    if version.takes_volumes:
        outputs = [_to_tensor(*_output_of_volumes(version), rows)]
    else:
        parts = parts_of(rows, version).items()
        outputs = [_to_tensor(name, "FP32", part) for name, (part, _) in parts]
    return JSONResponse(
        {"model_name": version.name, "model_version": version.version, **known,
         "outputs": [each for each in outputs if each["name"] in wanted]}
    )  # fmt: skip


def _read(body: bytes, version: Version, limits: Limits) -> tuple[list, dict, tuple[str, ...]]:
    """Return samples or texts, the id that the answer repeats, and the outputs that it has.

    Raises:
        Refusal: 400 or 422, the body is not what the model takes; 413, it holds too many samples.
    """
    content = parse_json(body)
    found, known = _read_tensor(content, version)
    wanted = _read_wanted(content, version)
    if version.packing is not None:
        found = to_rows([parse_json(str(each)) for each in found], version, limits)
    elif not isinstance(found, list):
        found, _ = to_samples(found, version, limits)
    return found, known, wanted


def _read_wanted(content: object, version: Version) -> tuple[str, ...]:
    """Return the names of the outputs that are asked for; all by default.

    Raises:
        Refusal: 400, the model has no such output, or it should be in another form.
    """
    known = tuple(version.outputs)
    if version.takes_volumes:
        known = _output_of_volumes(version)[:1]
    asked = content.get("outputs") if isinstance(content, dict) else None
    if not asked:
        return known
    rows = asked if isinstance(asked, list) else [None]
    for each in rows:
        _check_parameters(each, "an output")
    names = [str(each.get("name")) if isinstance(each, dict) else "" for each in rows]
    if not {*names} <= {*known}:
        raise Refusal(
            400, f"outputs={str(asked)[:80]} are not those of {version.name}",
            fix=f"leave them out, or ask for {', '.join(known)}",
        )  # fmt: skip
    return tuple(names)


def _output_of_volumes(version: Version) -> tuple[str, str]:
    """Return name and datatype of what is said of a volume."""
    return ("centers", "FP32") if version.finds_centers else ("labels", "UINT16")


def _describe(version: Version, shelf: Shelf) -> dict:
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, *[-1] * is_of_tokens(own), width]}
        for (name, own), width in zip(version.outputs.items(), version.widths, strict=True)
    ]
    if version.takes_volumes:
        is_detector = version.finds_centers
        sizes = shape_of_centers(version.spec) if is_detector else version.sample_shape[1:]
        name, kind = _output_of_volumes(version)
        outputs = [{"name": name, "datatype": kind, "shape": [-1, *sizes]}]
    return {
        "name": version.name, "versions": shelf.list_versions()[version.name],
        "platform": "deepseek", "inputs": [_input_of(version)], "outputs": outputs,
    }  # fmt: skip


def _input_of(version: Version) -> dict:
    """Return name, datatype and shape of what a version takes."""
    if version.takes_texts:
        return {"name": "text", "datatype": "BYTES", "shape": [-1]}
    if version.packing is not None:
        return {"name": "rows", "datatype": "BYTES", "shape": [-1]}
    datatype = _DATATYPES.get(version.sample_field.dtype, "FP32")
    sample = [-1] if version.takes_any_length else version.sample_shape
    return {"name": "inputs", "datatype": datatype, "shape": [-1, *sample]}


def _check_parameters(owner: object, what: str) -> None:
    """Refuse what would be ignored, such as `classification`.

    Raises:
        Refusal: 400, a parameter is given that is not known.
    """
    given = owner.get("parameters") if isinstance(owner, dict) else None
    unknown = sorted({*given} - IGNORED) if isinstance(given, dict) else [given] if given else []
    if unknown:
        raise Refusal(
            400, f"parameters={str(unknown)[:80]} of {what} are not known", fix="leave them out"
        )


def _check_input(tensor: dict, version: Version) -> None:
    """Refuse a tensor that is called otherwise, or holds other numbers, than the model's.

    Raises:
        Refusal: 400.
    """
    taken = _input_of(version)
    for key in ("name", "datatype"):
        if tensor.get(key) != taken[key]:
            raise Refusal(
                400, f"the input has the {key} {str(tensor.get(key))[:80]!r}",
                fix=f"send {taken[key]}, as /v2/models/{version.name} says",
            )  # fmt: skip
    _check_parameters(tensor, "the input")


def _read_tensor(content: object, version: Version) -> tuple[np.ndarray | list, dict]:
    """Return the one tensor of a request, texts as a list; and the id that its answer repeats.

    Raises:
        Refusal: 400, it is not as the protocol says, or not what the model takes.
    """
    _check_parameters(content, "the request")
    try:
        (tensor,) = content["inputs"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
        shape, datatype = tensor["shape"], tensor["datatype"]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"shape {shape!r} is not a list of sizes")
        if datatype not in _ALL_DATATYPES:
            raise ValueError(f"datatype {datatype!r} is not one of the protocol's")
        _check_input(tensor, version)
        is_text = datatype == "BYTES"
        if not is_text and has_text(tensor["data"]):
            raise ValueError(f"data of {datatype} hold a text")
        # of objects: all entries of an array of texts have the width of the longest
        array = np.array(tensor["data"], dtype=object if is_text else None).reshape(shape)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise Refusal(
            400, f"the body is no request of the protocol: {str(error)[:120]}",
            fix='send {"inputs": [{"name": "inputs", "shape": [...], "datatype": "FP32",'
            f' "data": [...]}}]}}, with name and datatype of /v2/models/{version.name}',
        ) from error  # fmt: skip
    id_ = content.get("id") if isinstance(content, dict) else None
    # half of a surrogate pair is no text that an answer could hold
    known = {"id": id_.encode("utf-8", "replace").decode()} if isinstance(id_, str) else {}
    return (array.reshape(-1).tolist() if is_text else array), known


def _to_tensor(name: str, datatype: str, rows: np.ndarray) -> dict:
    return {
        "name": name, "datatype": datatype, "shape": list(rows.shape), "data": rows.ravel().tolist()
    }  # fmt: skip
