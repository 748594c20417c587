"""From the body of a request to samples, and from rows to an answer.

```
image/*, application/octet-stream    one picture
application/gzip, octet-stream       one volume, as .nii.gz or .nii
application/json  {"inputs": ...}    numbers, nested as the sample is, or a list of samples
                  {"images": [...]}  pictures in base64
                  {"text": "..."}, {"texts": [...]}
                  {"row": {...}}, {"rows": [...]}   of a table: column -> value
```
"""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from deepseek.datasets import DataSpec
from deepseek.deploy.service.protection import Limits
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.shelf import Version
from deepseek.deploy.service.volumes import Mask, findings_in
from deepseek.errors import DataError
from deepseek.models.joint_outputs import is_number, is_of_tokens, widths_of

T = TypeVar("T")
LARGE_BYTES = 64 << 10
"""Of a body that takes a millisecond or more to read."""
PICTURES_AT_A_TIME = 2
"""Of one request, that wait to be decoded: those of others have their turn between them."""
_KEYS = {"inputs", "images", "text", "texts", "row", "rows"}
PICTURE_TYPES = ("image/", "application/octet-stream")
VOLUME_TYPES = (
    "application/gzip", "application/x-gzip", "application/octet-stream", "application/zip",
    "application/x-zip-compressed",
)  # fmt: skip
reading = asyncio.Semaphore(4)
"""Held while bodies of many MiB are objects of Python."""


async def read_samples(
    body: bytes, content_type: str, version: Version, limits: Limits
) -> tuple[list[np.ndarray], bool]:
    """Return the samples of a request, and whether it was a single one.

    Raises:
        Refusal: 400 or 422, the body is not what the model takes; 413, it holds too many samples;
            415, it is of another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith(PICTURE_TYPES):
        return [await _decode(body, version)], True
    if kind != "application/json":
        raise Refusal(
            415, f"Content-Type {kind[:80]!r} is not taken", fix="send image/* or application/json"
        )
    async with reading:
        content = await aside(len(body), parse_json, body)
        known = content if isinstance(content, dict) else {}
        if len(known) != 1 or not known.keys() <= _KEYS:
            raise Refusal(
                400,
                f"the JSON has the keys {str(sorted(known)[:5])[:120]}",
                fix='send {"inputs": numbers}, {"images": [base64, ...]}, {"texts": [...]} or'
                ' {"rows": [...]}',
            )  # fmt: skip
        if version.packing is not None:
            is_single = "row" in known
            rows = [known["row"]] if is_single else known.get("rows")
            return await aside(len(body), to_rows, rows, version, limits), is_single
        if "inputs" in known:
            return await aside(len(body), to_samples, known["inputs"], version, limits)
    if known.keys() & {"row", "rows"}:
        raise Refusal(
            422, f"{version.name} does not take rows: it was not trained on a table",
            fix='send {"inputs": numbers}',
        )  # fmt: skip
    if "images" in known:
        return await _decode_all(known["images"], version, limits)
    if "text" in known:
        return await encode_texts([known["text"]], version, limits), True
    return await encode_texts(known["texts"], version, limits), False


async def look_at_volume(
    body: bytes, content_type: str, version: Version, limits: Limits
) -> Mask | list[dict[str, float]]:
    """Return the mask of the volume in a body; of a detector the findings.

    Raises:
        Refusal: 400 or 422, the body is not what the model takes; 415, it is of another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in VOLUME_TYPES or version.decoder is None:
        raise Refusal(
            415, f"Content-Type {kind[:80]!r} is not taken by {version.name}",
            fix="send a .nii.gz file as application/gzip, or a zip as application/zip",
        )  # fmt: skip
    if not body:
        raise Refusal(400, "the body is empty", fix="send the bytes of a file")
    async with in_time(limits):
        scan = await version.decoder.open_scan(body)
    rows = await version.queue.submit([scan.voxels], limits.timeout_s)
    if version.finds_centers:
        return findings_in(rows[0], scan, version.spec)
    return await version.decoder.make_mask(rows[0], scan)


@asynccontextmanager
async def in_time(limits: Limits) -> AsyncIterator[None]:
    """Give up what is read of a request when its time is over.

    Raises:
        Refusal: 504.
    """
    try:
        async with asyncio.timeout(limits.timeout_s):
            yield
    except TimeoutError:
        raise Refusal(
            504, f"the request was not read within {limits.timeout_s:g} s",
            fix="send less at a time, or smaller pictures",
        ) from None  # fmt: skip


def parse_json(body: bytes | str) -> object:
    """Return what a body holds.

    Raises:
        Refusal: 400, it is not JSON, or nested too deep.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(
            400, f"the body is not JSON: {str(error)[:120]}", fix="send JSON in UTF-8"
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


async def aside(num_bytes: int, act: Callable[..., T], *arguments: object) -> T:
    """Return what `act` makes of a body; in a thread, where a large one would hold others up."""
    if num_bytes < LARGE_BYTES:
        return act(*arguments)
    return await asyncio.to_thread(act, *arguments)


async def _decode(content: bytes, version: Version) -> np.ndarray:
    if version.decoder is None or not version.takes_pictures:
        raise Refusal(
            422, f"{version.name} does not take pictures, or does not say how they are prepared",
            fix='send {"texts": [...]}' if version.takes_texts else 'send {"inputs": numbers}',
        )  # fmt: skip
    if not content:
        raise Refusal(400, "the body is empty", fix="send the bytes of a picture")
    return await version.decoder.decode(content)


async def _decode_all(
    pictures: object, version: Version, limits: Limits
) -> tuple[list[np.ndarray], bool]:
    if not isinstance(pictures, list) or not all(isinstance(each, str) for each in pictures):
        raise Refusal(400, "images is not a list of texts", fix="send them in base64")
    _check_count(len(pictures), limits)
    try:
        contents = [base64.b64decode(each, validate=True) for each in pictures]
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"a picture is not base64: {error}", fix="encode its bytes") from error
    turns = asyncio.Semaphore(PICTURES_AT_A_TIME)

    async def decode(content: bytes) -> np.ndarray:
        async with turns:
            return await _decode(content, version)

    decoding = [asyncio.create_task(decode(content)) for content in contents]
    try:
        return list(await asyncio.gather(*decoding)), False
    finally:  # one that is refused leaves the others behind
        for each in decoding:
            each.cancel()


async def encode_texts(texts: object, version: Version, limits: Limits) -> list[np.ndarray]:
    """Return texts as rows of tokens.

    Raises:
        Refusal: 400, they are no texts; 413, they are too many; 422, there is none, one is too
            long, or the model takes none.
    """
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise Refusal(400, "texts is not a list of texts", fix='send {"texts": ["...", "..."]}')
    if version.decoder is None or not version.takes_texts:
        raise Refusal(
            422, f"{version.name} does not take texts: it was not trained to classify them",
            fix='send {"inputs": numbers}',
        )  # fmt: skip
    _check_count(len(texts), limits)
    longest = max(map(len, texts))
    if longest > limits.max_chars:
        raise Refusal(
            422, f"a text of {longest:,} characters, the limit is {limits.max_chars:,}",
            fix="send shorter texts",
        )  # fmt: skip
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise Refusal(400, "a text has half a surrogate pair", fix="send valid Unicode")
    return list(await version.decoder.encode(texts))


def _check_count(count: int, limits: Limits) -> None:
    most = limits.max_samples
    if count < 1:
        raise Refusal(422, "0 samples", fix=f"send 1 to {most}")
    if count > most:
        raise Refusal(
            413, f"{count:,} samples, the limit is {most}", fix=f"send {most} at most at a time"
        )


def has_text(numbers: object) -> bool:
    """Return whether a text stands in nested lists: all entries of an array have its width."""
    layer: list[list] = [[numbers]]
    while layer:
        kinds = set().union(*(map(type, part) for part in layer))
        if str in kinds:
            return True
        inner = layer if list in kinds else []
        layer = [each for part in inner for each in part if type(each) is list]
    return False


def to_samples(numbers: object, version: Version, limits: Limits) -> tuple[list[np.ndarray], bool]:
    """Return nested numbers as samples, and whether they are a single one.

    Raises:
        Refusal: 400 or 422, they are not what the model takes; 413, they are too many.
    """
    shape = version.sample_shape
    no_number = Refusal(
        400, "inputs hold something that is not a number", fix=f"send numbers, {list(shape)}"
    )
    if has_text(numbers):
        raise no_number
    try:
        array = np.array(numbers)
    except (ValueError, OverflowError) as error:
        raise Refusal(
            400, "inputs are not nested evenly", fix=f"send numbers of the shape {list(shape)}"
        ) from error
    if array.dtype.kind not in "iuf":
        raise no_number
    is_single = array.ndim == len(shape)
    array = array[None] if is_single else array
    longest = version.max_length
    if version.takes_any_length and array.ndim == 2 and longest and array.shape[1] > longest:
        raise Refusal(
            422, f"rows of {array.shape[1]} tokens, {version.name} takes {longest} at most",
            fix="send shorter ones",
        )  # fmt: skip
    fits = array.ndim == len(shape) + 1 and (
        array.shape[1:] == shape or (version.takes_any_length and array.shape[1] > 0)
    )
    if not fits:
        raise Refusal(
            422, f"inputs have the shape {list(array.shape)[:8]}",
            fix=f"send {list(shape)}, or a list of such samples",
        )  # fmt: skip
    _check_count(len(array), limits)
    return list(_cast(array, version.sample_field.dtype, version)), is_single


def to_rows(rows: object, version: Version, limits: Limits) -> list[np.ndarray]:
    """Return rows of a table, packed.

    Raises:
        Refusal: 400, they are no rows; 413, they are too many; 422, they lack a column, or hold a
            value of another kind.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refusal(400, "rows is no list of objects", fix='send {"rows": [{column: value}]}')
    if version.encoder is None or version.packing is None:
        raise Refusal(422, f"{version.name} does not take rows", fix='send {"inputs": numbers}')
    _check_count(len(rows), limits)
    try:
        return list(version.packing.pack(version.encoder.encode_rows(rows)))
    except DataError as error:
        raise Refusal(422, error.message, fix=error.fix or "") from None


def _cast(array: np.ndarray, dtype: str, version: Version) -> np.ndarray:
    """Return numbers in the dtype of the model, where no value changes by it."""
    if dtype.startswith("float") or dtype == "bfloat16":
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise Refusal(400, "inputs are too large for float32", fix="send smaller numbers")
        return array
    low, high = (0, 255) if dtype == "uint8" else (0, version.num_tokens - 1)
    whole = array.dtype.kind in "iu" or bool((array == np.trunc(array)).all())
    if not whole or array.min() < low or array.max() > high:
        raise Refusal(
            422, f"inputs are from {array.min():g} to {array.max():g}",
            fix=f"send whole numbers from {low} to {high}",
        )  # fmt: skip
    return array.astype(dtype)


def answer(rows: np.ndarray, version: Version, top_k: int) -> list[dict]:
    """Return one JSON-able prediction per row of (B, K), its classes best first.

    Of a number it is `value`; of several tasks `tasks`, with either for each but those of tokens
    (`entities_of`); of a row of a table a score for each label.

    Raises:
        Refusal: 422, a row is no row of classes; 500, it is not finite.
    """
    if version.packing is not None:
        labels = version.spec.features.label if version.spec.features else ()
        return [{"scores": dict(zip(labels, row, strict=True))} for row in rows.tolist()]
    predictions = []
    for row in rows:
        if row.ndim != 1 and not (version.spec.tasks and version.finds_entities):
            raise Refusal(
                422, f"{version.name} answers with {list(row.shape)}, not with classes",
                fix=f"ask /v2/models/{version.name}/infer",
            )  # fmt: skip
        if not np.isfinite(row).all():
            raise Refusal(
                500, "the model answers with values that are not finite", fix="see its data"
            )
        if not version.spec.tasks:
            predictions.append(_said(row, version.spec, top_k))
            continue
        predictions.append({"tasks": {
            name: _said(part, own, top_k)
            for name, (part, own) in parts_of(row, version).items() if not is_of_tokens(own)
        }})  # fmt: skip
    return predictions


def parts_of(rows: np.ndarray, version: Version) -> dict[str, tuple[np.ndarray, DataSpec]]:
    """Return the part (..., K) of each output of rows (..., all), and what it is of.

    Of (..., T, all), where a task has classes of tokens, a part of another task is still (..., K).
    """
    outputs = version.outputs
    if len(outputs) == 1:
        return {name: (rows, spec) for name, spec in outputs.items()}
    ends = np.cumsum(widths_of(version.spec))[:-1]
    parts = np.split(rows, ends, -1)
    if version.finds_entities:
        pairs = zip(parts, outputs.values(), strict=True)
        parts = [part if is_of_tokens(own) else part[..., 0, :] for part, own in pairs]
    return dict(zip(outputs, zip(parts, outputs.values(), strict=True), strict=True))


def _said(row: np.ndarray, spec: DataSpec, top_k: int) -> dict:
    if is_number(spec):
        return {"value": row.tolist() if len(row) > 1 else float(row[0])}
    names = spec.class_names
    indices = (-row).argsort(kind="stable")[:top_k]
    top = [
        {"label": names[at] if names else str(at), "index": at, "prob": prob}
        for prob, at in zip(row[indices].tolist(), indices.tolist(), strict=True)
    ]
    return {**top[0], "top": top}
