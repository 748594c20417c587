"""Models of tables behind the service: rows in, scores out."""

import json

import pytest
import torch

from deepseek.datasets import InteractionDataset
from deepseek.models import ModelEngine
from deepseek.recsys import Scorer

JSON = {"content-type": "application/json"}
ROWS = [
    {"user": f"u{n % 5}", "item": f"i{n % 3}", "price": float(n % 7), "last": ["i1"] * (n % 4)}
    for n in range(60)
]


@pytest.fixture(scope="module")
def engine():
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    labels = {"click": [n % 2 for n in range(60)], "stars": [n % 5 + 0.5 for n in range(60)]}
    data = InteractionDataset(
        {**columns, **labels}, labels={"click": {}, "stars": {"kind": "number"}}, cache="off"
    )
    torch.manual_seed(0)
    engine = ModelEngine("mmoe", embedding_dim=4)
    engine.bind(data.spec)
    return engine


@pytest.fixture(scope="module")
def files(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "clicks.bin"
    engine.save(path)
    return {("clicks", "v1"): path}


def test_rows_are_scored_as_the_model_scores_them(ask, engine, files):
    wanted = Scorer(engine)(ROWS[:3])

    async def work(client):
        many = await client.post("/predict", json={"rows": ROWS[:3]})
        one = await client.post("/predict", json={"row": ROWS[1]})
        texts = [json.dumps(row) for row in ROWS[:3]]
        tensor = {"name": "rows", "shape": [3], "datatype": "BYTES", "data": texts}
        said = await client.post("/v2/models/clicks/infer", json={"inputs": [tensor]})
        about = await client.get("/v2/models/clicks")
        return many.json(), one.json(), said.json(), about.json()

    many, one, said, about = ask(work, files=files)
    for n, each in enumerate(many["predictions"]):
        for name in ("click", "stars"):
            assert each["scores"][name] == pytest.approx(float(wanted[name][n]), abs=1e-6)
    assert one["predictions"][0]["scores"] == pytest.approx(many["predictions"][1]["scores"])
    [output] = said["outputs"]
    assert (output["name"], output["shape"]) == ("scores", [3, 2])
    flat = torch.stack([wanted["click"], wanted["stars"]], 1).flatten().tolist()
    assert output["data"] == pytest.approx(flat, abs=1e-6)
    assert about["inputs"] == [{"name": "rows", "datatype": "BYTES", "shape": [-1]}]
    assert about["outputs"][0]["shape"] == [-1, 2]


def test_rows_that_cannot_be_read_are_refused_with_the_reason(ask, files):
    async def work(client):
        bodies = (
            {"rows": [{"user": "u1"}]}, {"rows": [{**ROWS[0], "price": [1]}]}, {"rows": "x"},
            {"rows": []}, {"inputs": [[1, 2]]}, {"rows": [{"\ud800": 1}]},
            {"rows": ROWS[:1] * 9},
        )  # fmt: skip
        tensor = {"name": "rows", "shape": [1], "datatype": "BYTES", "data": ["\ud800"]}
        infer = json.dumps({"inputs": [tensor]})
        return [
            *[await client.post("/predict", content=json.dumps(body), headers=JSON)
              for body in bodies],
            await client.post("/v2/models/clicks/infer", content=infer),
        ]  # fmt: skip

    found = ask(work, files=files)
    assert [each.status_code for each in found] == [422, 422, 400, 422, 400, 422, 413, 400]
    said = [each.json()["error"] for each in found]
    assert "is missing" in said[0]
    assert "is a list" in said[1]
    assert "rows is no list" in said[2]
    assert "there are ?" in said[5]  # half of a surrogate pair
    assert "9 samples, the limit is 8" in said[6]
    assert "not JSON" in said[7]
