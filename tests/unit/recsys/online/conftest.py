import json
import random

import pytest
import torch

from deepseek.config.features import CrossFeature
from deepseek.config.validation import validate_settings
from deepseek.datasets import ColumnSource, InteractionDataset, infer_features
from deepseek.models import ModelEngine
from deepseek.recsys import FactorizationMachine
from deepseek.recsys.online.event_log import Record
from deepseek.recsys.online.settings import OnlineSettings

GENRES = "abcd"


def make_rows(count, seed=0):
    """Return rows of users who click on the genre that their number says."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        user, genre = draw.randrange(20), draw.choice(GENRES)
        likes = genre == GENRES[user % 4]
        click = int(draw.random() < (0.8 if likes else 0.1))
        price = round(draw.expovariate(0.1), 2)
        rows.append({"user_id": f"u{user}", "genre": genre, "price": price, "click": click})
    return rows


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def save_model(path, rows, model=None):
    """Write an untrained model, by default an FM, of the rows' features."""
    torch.manual_seed(0)
    columns = columns_of(rows)
    spec = infer_features(ColumnSource(columns), labels="click")
    pair = {"user_genre": CrossFeature(of=("user_id", "genre"), buckets=256)}
    data = InteractionDataset(columns, spec.updated("cross", **pair), cache="off")
    engine = ModelEngine.wrap(model or FactorizationMachine(embedding_dim=4))
    engine.bind(data.spec)
    engine.save(path)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    save_model(path, make_rows(400))
    return path


@pytest.fixture
def settings(model_file, tmp_path):
    """Return a function that makes settings, with sections changed."""

    def make(**sections):
        content = {
            "model": str(model_file),
            "folder": str(tmp_path / "online"),
            "join": {"labels": {"click": {"event": "click", "window": "5s"}}},
            "learner": {"cut_events": 32, "lr": 0.1},
            "server": {"port": 0},
        }
        for name, section in sections.items():
            known = content.get(name)
            content[name] = {**known, **section} if isinstance(known, dict) else section
        return validate_settings(OnlineSettings, content)

    return make


def impression(number, row, **more):
    features = {name: value for name, value in row.items() if name != "click"}
    return {"kind": "impression", "request_id": f"r{number}", "features": features, **more}


def click(number, **more):
    return {"kind": "click", "request_id": f"r{number}", **more}


def kept(kind, key, client="c", **more):
    """Return an event as the log holds it."""
    return json.dumps({"kind": kind, "key": key, "client": client, **more}).encode()


def stream(rows, step_s=0.1, client=lambda number: "c"):
    """Return records of rows: an impression each, and a click a little later."""
    records = []

    def add(content, time):
        records.append(Record(len(records), time, content))

    for number, row in enumerate(rows):
        features = {name: value for name, value in row.items() if name != "click"}
        key = f"r{number}"
        add(kept("impression", key, client(number), features=features), number * step_s)
        if row["click"]:
            add(kept("click", key, client(number)), number * step_s + step_s / 2)
        if number % 50 == 49:
            add(b'{"kind":"tick"}', number * step_s + step_s / 2)
    add(b'{"kind":"tick"}', len(rows) * step_s + 60)
    return records
