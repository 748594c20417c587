"""A model of texts behind HTTP: what a client sends is what the engine predicts for it."""

import json
import tracemalloc

import pytest
import torch
from tests.unit.deploy.service.conftest import LIMITS, make_text_engine

from deepseek.models import ModelEngine

TEXTS = ["a good film", "a bad film that goes on and on and on"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    make_text_engine(folder).save(folder / "m.bin")
    return {("reviews", "1"): folder / "m.bin"}


def test_texts_are_classified_as_the_model_does(ask, files):
    expected = ModelEngine.load(files["reviews", "1"]).predict(TEXTS, top_k=2)

    async def talk(client):
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}
        return [
            await client.post("/predict", json={"texts": TEXTS}),
            await client.post("/predict", json={"text": TEXTS[0]}),
            await client.post("/v2/models/reviews/infer", json={"inputs": [tensor]}),
            await client.get("/v2/models/reviews"),
            await client.get("/models"),
        ]

    many, one, tensor, described, state = (answer.json() for answer in ask(talk, files=files))
    assert [each["label"] for each in many["predictions"]] == [each.label for each in expected]
    assert one["predictions"][0]["label"] == expected[0].label
    assert one["predictions"][0]["prob"] == pytest.approx(expected[0].prob, abs=1e-6)
    probs = torch.tensor(tensor["outputs"][0]["data"]).reshape(2, 2)
    assert torch.allclose(probs, torch.stack([each.probs for each in expected]), atol=1e-6)
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert state["models"][0]["takes"] == "text"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"text": "x" * (LIMITS.max_chars + 1)}, 422, "a text of 1,001 characters, the limit is"),
        ({"texts": ["a"] * 9}, 413, "9 samples, the limit is 8"),
        ({"texts": []}, 422, "0 samples"),
        ({"texts": "a"}, 400, "texts is not a list"),
        ({"text": 7}, 400, "texts is not a list"),
        ({"text": "a", "texts": ["b"]}, 400, "the JSON has the keys"),
        ({"images": ["eA=="]}, 422, "does not take pictures"),
        ({"text": ""}, 200, ""),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(ask, files, body, status, message):
    async def talk(client):
        return await client.post("/predict", json=body)

    answer = ask(talk, files=files)
    assert answer.status_code == status, answer.text
    assert message in answer.text


@pytest.mark.parametrize("change", [{}, {"data": ["\ud800"]}, {"shape": "\ud800"}])
def test_half_of_a_surrogate_pair_is_no_text(ask, files, change):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"], **change}

    async def talk(client):
        headers = {"content-type": "application/json"}
        path = "/v2/models/reviews/infer" if change else "/predict"
        body = {"inputs": [tensor]} if change else {"text": "\ud800"}
        return await client.post(path, content=json.dumps(body), headers=headers)

    answer = ask(talk, files=files)
    assert answer.status_code == 400
    assert answer.json()["fix"]


def test_outputs_with_half_of_a_surrogate_pair_are_refused(ask, files):
    async def talk(client):
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
        content = json.dumps({"inputs": [tensor], "outputs": "\ud800"})
        return await client.post("/v2/models/reviews/infer", content=content)

    answer = ask(talk, files=files)
    assert (answer.status_code, "outputs=?" in answer.json()["error"]) == (400, True)


def test_texts_of_a_tensor_are_never_an_array_as_wide_as_the_longest(ask, files):
    texts = ["a" * 100_000, *[""] * 500]

    async def talk(client):
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        tracemalloc.start()
        try:
            said = await client.post("/v2/models/reviews/infer", json={"inputs": [tensor]})
            return said, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    said, peak = ask(talk, files=files)
    assert (said.status_code, "501 samples" in said.json()["error"]) == (413, True)
    assert peak < 50 << 20


def test_more_tokens_than_the_model_takes_are_refused(ask, files):
    async def talk(client):
        return [await client.post("/predict", json={"inputs": [5] * count}) for count in (16, 17)]

    fits, longer = ask(talk, files=files)
    assert (fits.status_code, longer.status_code) == (200, 422)
    assert "rows of 17 tokens, reviews takes 16 at most" in longer.json()["error"]


def test_a_model_of_pictures_takes_no_text(ask):
    async def talk(client):
        return await client.post("/predict", json={"text": "a"})

    answer = ask(talk)
    assert answer.status_code == 422
    assert "does not take texts" in answer.json()["error"]
