"""A model of texts behind HTTP: what a client sends is what the engine predicts for it."""

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
        ({"texts": ["a"] * 9}, 422, "9 samples, the limit is 8"),
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


def test_half_of_a_surrogate_pair_is_no_text(ask, files):
    async def talk(client):
        headers = {"content-type": "application/json"}
        return await client.post("/predict", content=rb'{"text": "\ud800"}', headers=headers)

    assert ask(talk, files=files).status_code == 400


def test_a_model_of_pictures_takes_no_text(ask):
    async def talk(client):
        return await client.post("/predict", json={"text": "a"})

    answer = ask(talk)
    assert answer.status_code == 422
    assert "does not take texts" in answer.json()["error"]
