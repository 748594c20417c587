import asyncio
import base64
import json
import struct
import threading
import tracemalloc
import zlib
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from tests.unit.deploy.service.conftest import LIMITS, make_engine, png

from deepseek.deploy.service import app, protocol, question
from deepseek.deploy.service.answers import Inference, Predictions
from deepseek.deploy.service.decoding import Decoder
from deepseek.deploy.service.refusal import Refusal
from deepseek.deploy.service.tokens import hash_token
from deepseek.models import ModelEngine

JSON = {"content-type": "application/json"}


def test_a_picture_is_classified_as_the_model_does(ask, model_folder, tmp_path):
    content = png()

    async def talk(client):
        return await client.post(
            "/predict?top_k=3", content=content, headers={"content-type": "image/png"}
        )

    answer = ask(talk)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["version"]) == ("digits", "v10")  # the newest, by number
    (prediction,) = body["predictions"]
    (tmp_path / "a.png").write_bytes(content)
    engine = ModelEngine.load(model_folder / "digits/v10.bin")
    expected = engine.predict(str(tmp_path / "a.png"), top_k=3)
    assert [entry["label"] for entry in prediction["top"]] == [label for label, _ in expected.top]
    assert prediction["prob"] == pytest.approx(expected.prob, abs=1e-6)


def test_numbers_pictures_and_the_protocol_say_the_same(ask):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)

    async def talk(client):
        rows = pixels[None].tolist()
        tensor = {"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "UINT8"}
        data = pixels.flatten().tolist()
        return [
            await client.post("/predict?top_k=10", json={"inputs": rows}),
            await client.post("/predict?top_k=10", json={"inputs": [rows]}),
            await client.post(
                "/predict?top_k=10", json={"images": [base64.b64encode(png()).decode()]}
            ),
            await client.post(
                "/v2/models/digits/infer", json={"id": "7", "inputs": [{**tensor, "data": data}]}
            ),
        ]

    one, batch, picture, tensor = (answer.json() for answer in ask(talk))
    assert one["predictions"] == batch["predictions"] == picture["predictions"]
    probs = torch.tensor(tensor["outputs"][0]["data"])
    assert tensor["outputs"][0]["shape"] == [1, 10]
    assert (tensor["id"], tensor["model_version"]) == ("7", "v10")
    by_index = {entry["index"]: entry["prob"] for entry in one["predictions"][0]["top"]}
    assert torch.allclose(probs, torch.tensor([by_index[index] for index in range(10)]))


BAD_BODIES = [
    (b"", "application/json", 400, "not JSON"),
    (b"{", "application/json", 400, "not JSON"),
    (b"[" * 100_000, "application/json", 400, "not JSON"),
    (b'{"inputs": NaN}', "application/json", 400, "NaN is not JSON"),
    (b'{"inputs": 1e999}', "application/json", 422, "inputs have the shape"),
    (b"\xff\xfe", "application/json", 400, "not JSON"),
    (b"[1]", "application/json", 400, "has the keys []"),
    (b'{"inputs": [], "images": []}', "application/json", 400, "has the keys ['images', 'inputs']"),
    (b'{"input": []}', "application/json", 400, "has the keys ['input']"),
    (b'{"inputs": [[1, 2], [3]]}', "application/json", 400, "not nested evenly"),
    (b'{"inputs": ["a"]}', "application/json", 400, "not a number"),
    (b'{"inputs": null}', "application/json", 400, "not a number"),
    (b'{"inputs": [1, 2]}', "application/json", 422, "inputs have the shape [2]"),
    (b'{"images": "abc"}', "application/json", 400, "not a list of texts"),
    (b'{"images": []}', "application/json", 422, "0 samples"),
    (json.dumps({"images": ["eA=="] * 9}).encode(), "application/json", 413, "9 samples"),
    (json.dumps({"inputs": [[[[0] * 8] * 8]] * 9}).encode(), "application/json", 413, "9 samples"),
    (b'{"images": ["?"]}', "application/json", 400, "not base64"),
    (b"hello", "text/plain", 415, "Content-Type 'text/plain' is not taken"),
    (b"hello", "image/png", 400, "the picture"),
    (b"", "image/png", 400, "the body is empty"),
    (png((200, 200)), "image/png", 400, "pixels"),
    (png()[:40], "image/png", 400, "the picture"),
    (bytes(LIMITS.max_body_bytes + 1), "image/png", 413, "a body of 200,001 bytes or more"),
]


def test_what_cannot_be_read_is_refused_with_the_reason_and_the_service_stays(ask):
    async def talk(client):
        for body, kind, status, message in BAD_BODIES:
            answer = await client.post("/predict", content=body, headers={"content-type": kind})
            assert answer.status_code == status, (body[:40], answer.text)
            assert message in answer.json()["error"], (body[:40], answer.text)
            assert answer.json()["fix"]
        good = await client.post("/predict", content=png(), headers={"content-type": "image/png"})
        assert good.status_code == 200

    ask(talk)


@pytest.mark.parametrize("values", [[256], [-1], [0.5]])
def test_pixels_that_are_none_are_refused(ask, values):
    rows = [[values * 8] * 8]

    async def talk(client):
        return await client.post("/predict", json={"inputs": rows})

    answer = ask(talk)
    assert answer.status_code == 422
    assert "whole numbers from 0 to 255" in answer.json()["fix"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/health", 200), ("GET", "/ready", 200),
        ("GET", "/metrics", 200), ("GET", "/models", 200), ("GET", "/openapi.json", 200),
        ("GET", "/v2/health/live", 200), ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/digits", 200), ("GET", "/v2/models/digits/ready", 200),
        ("GET", "/v2", 200), ("GET", "/v2/models/digits/versions/v10", 200),
        ("GET", "/v2/models/digits/versions/v10/ready", 200),
        ("GET", "/v2/models/digits/versions/v1", 404), ("GET", "/predict/", 404),
        ("HEAD", "/health", 200), ("HEAD", "/ready", 200), ("HEAD", "/", 200),
        ("OPTIONS", "/predict", 405), ("POST", "/predict?mask=x", 422),
        ("GET", "/v2/models/none", 404), ("GET", "/none", 404), ("DELETE", "/predict", 405),
        ("POST", "/predict?model=none", 404), ("POST", "/predict?top_k=0", 422),
        ("POST", "/predict?top_k=x", 422), ("POST", "/models/digits/rollback", 409),
        ("POST", "/models/none/rollback", 404),
    ],
)  # fmt: skip
def test_routes_answer_and_errors_have_one_form(ask, method, path, status):
    async def talk(client):
        return await client.request(method, path)

    answer = ask(talk)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status >= 400:
        assert {"error", "fix"} == answer.json().keys()


TENSOR = {"name": "inputs", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": [7] * 64}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"datatype": "FP99"}, 400, "datatype 'FP99'"),
        ({"shape": [-1, 1, 8, 8]}, 400, "is not a list of sizes"),
        ({"shape": "1188"}, 400, "is not a list of sizes"),
        ({"shape": [10**30]}, 400, "no request of the protocol"),
        ({"shape": [0, 1, 8, 8], "data": []}, 422, "0 samples"),
        ({"data": "abc"}, 400, "no request of the protocol"),
        ({"datatype": "BYTES", "shape": [1], "data": ["x"]}, 400, "the datatype 'BYTES'"),
        ({"datatype": "FP32"}, 400, "the datatype 'FP32'"),
        ({"name": "pixels"}, 400, "the name 'pixels'"),
        ({"name": ["inputs"]}, 400, "the name \"['inputs']\""),
        ({"parameters": {"content_type": "np"}}, 400, "['content_type'] of the input"),
        ({"parameters": 5}, 400, "[5] of the input"),
        ({"parameters": {}}, 200, ""),
    ],
)
def test_tensors_that_are_none_are_refused(ask, change, status, words):
    async def talk(client):
        body = {"inputs": [{**TENSOR, **change}]}
        return await client.post("/v2/models/digits/infer", json=body)

    answer = ask(talk)
    assert (answer.status_code, words in answer.json().get("error", "")) == (status, True)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"outputs": [{"name": "probs"}]}, 200), ({"outputs": []}, 200), ({"outputs": 5}, 400),
        ({"outputs": ["probs"]}, 400), ({"outputs": [{"name": "none"}]}, 400),
        ({"id": "\ud800"}, 200), ({"parameters": {"binary_data_output": True}}, 200),
        ({"parameters": {"sequence_id": 7}}, 400),
        ({"outputs": [{"name": "probs", "parameters": {"binary_data": True}}]}, 200),
        ({"outputs": [{"name": "probs", "parameters": {"classification": 3}}]}, 400),
    ],
)  # fmt: skip
def test_outputs_and_id_of_the_protocol_are_checked(ask, more, status):
    async def talk(client):
        path = "/v2/models/digits/versions/v10/infer"
        content = json.dumps({"inputs": [TENSOR], **more}).encode()
        return await client.post(path, content=content)

    assert ask(talk).status_code == status


def test_texts_among_numbers_are_refused_before_they_are_an_array(ask):
    texts = ["a" * 100_000, *[""] * 500]  # an array of them would have 200 MB

    async def talk(client):
        tensor = {**TENSOR, "shape": [len(texts)], "data": texts}
        tracemalloc.start()
        try:
            said = [
                await client.post("/predict", json={"inputs": texts}),
                await client.post("/v2/models/digits/infer", json={"inputs": [tensor]}),
            ]
            return said, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (plain, inferred), peak = ask(talk)
    assert (plain.status_code, inferred.status_code) == (400, 400)
    assert "something that is not a number" in plain.json()["error"]
    assert "data of UINT8 hold a text" in inferred.json()["error"]
    assert peak < 50 << 20


def test_a_text_is_found_however_deep_it_stands():
    assert question.has_text("a")
    assert question.has_text([[1, 2], [3, [4, "5"]]])
    assert not question.has_text([[1, 2.0], [None, [], [[3]]]])


def test_large_tensors_of_the_protocol_are_read_aside(ask, monkeypatch):
    monkeypatch.setattr(question, "LARGE_BYTES", 100)
    monkeypatch.setattr(protocol, "reading", asyncio.Semaphore(2))
    read, own = protocol._read, threading.get_ident()
    seen, left, at_a_time, two = [], [], [], threading.Barrier(2)

    def watched(*arguments):
        seen.append(threading.get_ident())
        at_a_time.append(len(seen) - len(left))
        two.wait(20)
        left.append(None)
        return read(*arguments)

    monkeypatch.setattr(protocol, "_read", watched)

    async def talk(client):
        body = {"inputs": [TENSOR]}
        return await asyncio.gather(
            *(client.post("/v2/models/digits/infer", json=body) for _ in range(6))
        )

    assert [each.status_code for each in ask(talk)] == [200] * 6
    assert len(seen) == 6
    assert own not in seen
    assert max(at_a_time) <= 2


def test_a_bad_picture_ends_the_reading_of_those_beside_it(ask, monkeypatch):
    begun = []

    async def decode(self, content):
        begun.append(content)
        await asyncio.sleep(0)
        if content == b"bad":
            raise Refusal(400, "the picture is none")
        return np.zeros((1, 8, 8), np.uint8)

    monkeypatch.setattr(Decoder, "decode", decode)

    async def talk(client):
        images = [base64.b64encode(each).decode() for each in (b"bad", *[b"good"] * 7)]
        answer = await client.post("/predict", json={"images": images})
        for _ in range(50):
            await asyncio.sleep(0)
        return answer

    assert ask(talk).status_code == 400
    assert len(begun) <= 4


def test_a_picture_that_waits_too_long_is_given_up(ask, monkeypatch):
    async def decode(self, content):
        await asyncio.Event().wait()

    def soon(limits):
        return question.in_time(replace(limits, timeout_s=0.0))

    monkeypatch.setattr(Decoder, "decode", decode)
    monkeypatch.setattr(app, "in_time", soon)

    async def talk(client):
        return await client.post("/predict", content=b"x", headers={"content-type": "image/png"})

    answer = ask(talk)
    assert answer.status_code == 504
    assert "was not read within 0 s" in answer.json()["error"]


def test_a_mask_is_asked_of_models_of_volumes(ask):
    async def talk(client):
        return await client.post("/predict?mask=true", json={"inputs": [[[7] * 8] * 8]})

    answer = ask(talk)
    assert (answer.status_code, "makes no masks" in answer.json()["error"]) == (422, True)


def test_large_bodies_have_a_room_of_their_own(ask, monkeypatch):
    from deepseek.deploy.service import protection

    monkeypatch.setattr(protection, "SMALL_BYTES", 1000)
    monkeypatch.setattr(protection, "LARGE_BODIES", 0.5)

    async def talk(client):
        large = await client.post("/predict", content=b"[" + b" " * 150_000 + b"]")
        small = await client.post("/predict", json={"inputs": [[[7] * 8] * 8]})
        again = await client.post("/predict", content=b"[" + b" " * 90_000 + b"]", headers=JSON)
        page = (await client.get("/metrics")).text
        return large, small, again, page

    large, small, again, page = ask(talk)
    assert (large.status_code, small.status_code, again.status_code) == (429, 200, 400)
    assert 'deepseek_requests_total{route="refused",status="429"} 1.0' in page


def test_a_file_that_was_replaced_is_not_taken_for_the_version_that_answers(ask, model_folder):
    path = model_folder / "digits" / "v10.bin"
    content = path.read_bytes()

    async def talk(client):
        path.write_bytes(content + b" ")
        return await client.post("/models/digits/activate", json={"version": "v10"})

    try:
        answer = ask(talk)
    finally:
        path.write_bytes(content)
    assert (answer.status_code, "is another one" in answer.json()["error"]) == (409, True)


def test_versions_are_swapped_and_rolled_back(ask):
    async def talk(client):
        async def version():
            body = (await client.post("/predict", json={"inputs": [[[0] * 8] * 8]})).json()
            return body["version"]

        found = [await version()]
        for path, body in (
            ("/models/digits/activate", {"version": "v1"}),
            ("/models/digits/rollback", None),
            ("/models/digits/activate", {"version": "v2"}),
            ("/models/digits/activate", {"version": "v10"}),
        ):
            assert (await client.post(path, json=body)).status_code == 200
            found.append(await version())
        return found

    assert ask(talk) == ["v10", "v1", "v10", "v2", "v10"]


def test_a_rollback_that_is_sent_again_does_not_bring_the_bad_version_back(ask):
    async def talk(client):
        async def state():
            return (await client.get("/models")).json()["models"][0]

        await client.post("/models/digits/activate", json={"version": "v1"})
        assert (await state())["previous"] == "v10"
        first = await client.post("/models/digits/rollback")
        again = await client.post("/models/digits/rollback")
        return first, again, await state()

    first, again, state = ask(talk)
    assert (first.status_code, first.json()["active"]) == (200, "v10")
    assert again.status_code == 409
    assert "version v10 of digits answers" in again.json()["error"]
    assert (state["active"], state["previous"]) == ("v10", None)


def test_every_version_that_is_loaded_answers_the_protocol(ask):
    async def talk(client):
        await client.post("/models/digits/activate", json={"version": "v1"})
        paths = [f"/v2/models/digits/versions/{version}" for version in ("v1", "v10", "v2")]
        about = [await client.get(path) for path in paths]
        said = [await client.post(f"{path}/infer", json={"inputs": [TENSOR]}) for path in paths]
        return about, said

    about, said = ask(talk)
    assert [answer.status_code for answer in (*about, *said)] == [200, 200, 404] * 2
    assert [answer.json()["model_version"] for answer in said[:2]] == ["v1", "v10"]
    assert said[0].json()["outputs"] != said[1].json()["outputs"]
    assert about[2].json()["fix"] == "ask for one of: v1, v10; or activate one of: v1, v2, v10"


def test_a_picture_bomb_is_told_our_limit(ask):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    async def talk(client):
        return await client.post("/predict", content=bomb, headers={"content-type": "image/png"})

    answer = ask(talk)
    assert answer.status_code == 400
    assert "400000000 pixels, more than max_pixels=10000" in answer.json()["error"]
    assert "10,000 pixels at most" in answer.json()["fix"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"version": "../v1"}, 404), ({"version": 1}, 400), ([], 400), ({"version": "broken"}, 409)],
)
def test_a_version_that_is_none_leaves_the_old_one(ask, model_folder, body, status):
    broken = model_folder / "digits" / "broken.bin"
    if status == 409:
        broken.write_bytes((model_folder / "digits/v1.bin").read_bytes()[:-50])

    async def talk(client):
        answer = await client.post("/models/digits/activate", json=body)
        state = (await client.get("/models")).json()["models"][0]
        return answer.status_code, state["active"]

    try:
        # a name without a number is older than all with one
        assert ask(talk) == (status, "v10")
    finally:
        broken.unlink(missing_ok=True)


RIGHT = {"authorization": "Bearer ds_right"}


def ask_with_token(ask, talk):
    hashes = (hash_token("ds_right"),)
    return ask(talk, hashes, is_loopback=False, base_url="http://example.com")


def test_every_route_but_the_pages_wants_the_token_where_there_is_one(ask):
    async def talk(client):
        paths = (await client.get("/openapi.json", headers=RIGHT)).json()["paths"]
        more = {path: {"get": {}, "head": {}} for path in ("/openapi.json", "/redoc")}
        refused = []
        for path, methods in {**paths, **more, "/": {"post": {}}, "/docs": {"post": {}}}.items():
            for method in methods:
                for headers in ({}, {"authorization": "Bearer ds_wrong"}, {"authorization": "ds"}):
                    answer = await client.request(method, path, headers=headers)
                    refused.append((path, answer.status_code))
        allowed = await client.get("/health", headers=RIGHT)
        return refused, allowed.status_code

    refused, allowed = ask_with_token(ask, talk)
    assert {status for _, status in refused} == {401}
    assert len(refused) > 30
    assert allowed == 200


def test_the_page_is_open_and_the_same_whatever_is_served(ask):
    async def talk(client):
        plain = await client.get("/")
        sent = await client.request("GET", "/", content=bytes(LIMITS.max_body_bytes + 1))
        return plain, sent, await client.head("/")

    plain, sent, head = ask_with_token(ask, talk)
    page = files("deepseek.deploy.service").joinpath("page.html").read_text(encoding="utf-8")
    assert [answer.status_code for answer in (plain, sent, head)] == [200] * 3
    assert plain.text == sent.text == page
    assert "default-src 'none'" in plain.headers["content-security-policy"]


def test_the_interface_has_types_of_answers_and_the_token(ask):
    async def talk(client):
        schema = await client.get("/openapi.json", headers=RIGHT)
        return schema, await client.get("/docs")

    schema, docs = ask_with_token(ask, talk)
    schema = schema.json()
    assert schema["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    assert schema["security"] == [{"token": []}]
    for path, name in (
        ("/predict", "Predictions"), ("/v2/models/{model}/infer", "Inference"),
        ("/v2/models/{model}/versions/{version}/infer", "Inference"),
    ):  # fmt: skip
        answer = schema["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]
        assert answer["schema"]["$ref"] == f"#/components/schemas/{name}"
        assert name in schema["components"]["schemas"]
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    assert "http" not in docs.text.replace("http-equiv", "")  # nothing comes from elsewhere


def test_without_tokens_the_interface_asks_for_none(ask):
    async def talk(client):
        return (await client.get("/openapi.json")).json()

    schema = ask(talk)
    assert "security" not in schema
    assert "securitySchemes" not in schema["components"]


def test_answers_are_of_the_types_that_the_interface_says(ask):
    async def talk(client):
        said = await client.post("/predict", json={"inputs": [[[7] * 8] * 8]})
        inferred = await client.post("/v2/models/digits/infer", json={"inputs": [TENSOR]})
        return said.json(), inferred.json()

    said, inferred = ask(talk)
    assert Predictions.model_validate(said, extra="forbid").predictions
    assert Inference.model_validate(inferred, extra="forbid").outputs


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example:8000"}, 421),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "127.0.0.2:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8000"}, 200),
    ],
)
def test_a_page_of_the_web_cannot_speak_to_a_service_on_loopback(ask, headers, status):
    async def talk(client):
        return (await client.get("/models", headers=headers)).status_code

    assert ask(talk) == status


def test_the_counters_tell_batches_routes_and_the_active_version(ask):
    async def talk(client):
        await client.post("/predict", json={"inputs": [[[0] * 8] * 8] * 1})
        return (await client.get("/metrics")).text

    page = ask(talk)
    assert 'deepseek_requests_total{route="/predict",status="200"} 1.0' in page
    assert 'deepseek_batch_samples_count{model="digits",version="v10"} 1.0' not in page  # no hook
    assert 'deepseek_model_active{model="digits",version="v10"} 1.0' in page


def test_a_model_without_a_spec_is_not_served(tmp_path):
    from tests.unit.deploy.service.conftest import build

    from deepseek.errors import ConfigError

    engine = make_engine()
    engine.spec = None
    engine.save(tmp_path / "m.bin")
    with pytest.raises(ConfigError, match="does not say what it takes"):
        build("m", "1", tmp_path / "m.bin")
