"""The online-learning service under load, and fed with poison.

```
python benchmarks/online_service.py load --seconds 60    1,000 events/s, 200 requests/s to rank 100
python benchmarks/online_service.py poison              1, 5 and 20 % of labels flipped, a loud liar
```
The clients are on the same machine: their share of the processors is printed.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from deepseek.config.features import CrossFeature, SparseFeature
from deepseek.config.validation import validate_settings
from deepseek.datasets import ColumnSource, InteractionDataset, infer_features
from deepseek.models import ModelEngine
from deepseek.recsys import FactorizationMachine
from deepseek.recsys.online.event_log import Record
from deepseek.recsys.online.learner import Learner
from deepseek.recsys.online.learner_process import Publisher
from deepseek.recsys.online.online_model import OnlineModel
from deepseek.recsys.online.settings import OnlineSettings

NUM_USERS, NUM_ITEMS = 1000, 5000


def make_rows(count, seed):
    """Return rows of users with a taste."""
    draw = np.random.default_rng(seed)
    taste = np.random.default_rng(0).normal(size=(NUM_USERS, 8))
    users, items = draw.integers(NUM_USERS, size=count), draw.zipf(1.3, size=count) % NUM_ITEMS
    logits = 1.5 * taste[users, items % 8] - 1.5
    clicks = draw.random(count) < 1 / (1 + np.exp(-logits))
    return [
        {"user_id": f"u{u}", "item_id": f"i{i}", "genre": f"g{i % 8}", "price": float(i % 97),
         "hour": int(n % 24), "click": int(c)}
        for n, (u, i, c) in enumerate(zip(users, items, clicks, strict=True))
    ]  # fmt: skip


def write_model(path, rows):
    """Write an untrained FM."""
    torch.manual_seed(0)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    spec = infer_features(ColumnSource(columns), labels="click")
    hashed = {
        n: SparseFeature(column=n, encoding="hash", buckets=20_000) for n in ("user_id", "item_id")
    }
    spec = spec.updated("sparse", **hashed)
    spec = spec.updated("cross", pair=CrossFeature(of=("user_id", "genre"), buckets=20_000))
    data = InteractionDataset(columns, spec, cache="off")
    engine = ModelEngine.wrap(FactorizationMachine(embedding_dim=8))
    engine.bind(data.spec)
    engine.save(path)


def settings_of(folder, **sections):
    """Return settings of a service."""
    return {
        "model": str(folder / "model.bin"), "folder": str(folder / "online"),
        "server": {"port": 0},
        "join": {"labels": {"click": {"event": "click", "window": "2s"}}}, **sections,
    }  # fmt: skip


def impression(name, row):
    """Return an event."""
    features = {key: value for key, value in row.items() if key != "click"}
    return {"kind": "impression", "request_id": name, "features": features}


class Connection:
    """HTTP/1.1, one request at a time."""

    def __init__(self, url):
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._streams = None

    async def post(self, path, body):
        """Return status and content."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        size = next(int(each[15:]) for each in lines if each.startswith("content-length:"))
        return int(lines[0].split()[1]), await reader.readexactly(size)


async def every(rate, seconds, work, width):
    """Call `work` at a rate, whatever its answers take; `width` of them at a time at most."""
    free = asyncio.Queue()
    for number in range(width):
        free.put_nowait(number)
    began, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))

        async def one(number=number, due=due):
            at = await free.get()
            await work(number, at, due)
            free.put_nowait(at)

        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)


async def run_load(url, seconds, per_request):
    """Return times of rankings, times until predictions changed, and errors."""
    rows = make_rows(20_000, 1)
    draw, took, errors, fresh = random.Random(0), [], [], []
    ranks = [Connection(url) for _ in range(32)]
    senders = [Connection(url) for _ in range(64)]
    items = [{key: row[key] for key in ("item_id", "genre", "price")} for row in rows]
    questions = []
    for n in range(200):
        asked = {"user": {"user_id": f"u{n}"}, "context": {"hour": n % 24}}
        questions.append(json.dumps({**asked, "candidates": draw.sample(items, 100)}).encode())

    async def rank(number, at, due):
        status, _ = await ranks[at].post("/v1/rank", questions[number % 200])
        took.append(time.perf_counter() - due)
        errors.extend([status] if status != 200 else [])

    async def send(number, at, due):
        events = []
        for n in range(number * per_request // 2, (number + 1) * per_request // 2):
            row = rows[n % len(rows)]
            events.append(impression(f"r{n}", row))
            events.append({"kind": "click", "request_id": f"r{n - 500 if row['click'] else n}"})
        status, _ = await senders[at].post("/v1/events", json.dumps({"events": events}).encode())
        errors.extend([status] if status != 200 else [])

    async def probe(number, at, due):
        """How long until a click changes what is predicted for its user."""
        row = {"item_id": f"probe{number}", "genre": "g1", "price": 1.0}
        question = json.dumps({"user": {"user_id": f"new{number}", "hour": 1}, "candidates": [row]})
        asked = Connection(url)
        before = json.loads((await asked.post("/v1/rank", question.encode()))[1])["probs"]
        shown = impression(f"p{number}", {**row, "user_id": f"new{number}", "hour": 1})
        body = {"events": [shown, {"kind": "click", "request_id": f"p{number}"}]}
        began = time.perf_counter()
        await asked.post("/v1/events", json.dumps(body).encode())
        while json.loads((await asked.post("/v1/rank", question.encode()))[1])["probs"] == before:
            await asyncio.sleep(0.02)
        fresh.append(time.perf_counter() - began)

    await asyncio.gather(
        every(200, seconds, rank, 32), every(1000 / per_request, seconds, send, 64),
        every(0.5, seconds, probe, 4),
    )  # fmt: skip
    return took, fresh, errors


def load(arguments):
    """Measure a service of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.bin", make_rows(5000, 2))
        (folder / "cfg.yaml").write_text(json.dumps(settings_of(folder)))
        command = [
            sys.executable,
            "-m",
            "deepseek.cli.main",
            "online",
            "serve",
            str(folder / "cfg.yaml"),
        ]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        url = next(
            word for line in service.stdout for word in line.split() if word.startswith("http")
        )
        asyncio.run(run_load(url, 3, arguments.per_request))  # to warm up
        began = time.perf_counter()
        took, fresh, errors = asyncio.run(run_load(url, arguments.seconds, arguments.per_request))
        spent = time.perf_counter() - began
        service.terminate()
        service.wait()
    own = resource.getrusage(resource.RUSAGE_SELF)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{spent:.0f} s, {len(took)} rankings, {1000 * spent:.0f} events, {len(errors)} errors")
    for what, values, unit in (
        ("rank", np.array(took) * 1e3, "ms"),
        ("event to prediction", np.array(fresh), "s"),
    ):
        shown = "  ".join(f"p{q} {np.percentile(values, q):.2f}" for q in (50, 90, 99))
        print(f"{what}: {shown} {unit}")
    spent_s = [each.ru_utime + each.ru_stime for each in (theirs, own)]
    print(f"processor time: service {spent_s[0]:.1f} s, clients {spent_s[1]:.1f} s")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


def poison(arguments):
    """Learn from poisoned streams, and print what was published."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.bin", make_rows(5000, 2))
        lines = map(json.dumps, make_rows(4000, 3))
        (folder / "holdout.jsonl").write_text("\n".join(lines))
        content = settings_of(folder, gate={"holdout": str(folder / "holdout.jsonl")})
        rows = make_rows(arguments.examples, 4)
        for flipped, is_loud in ((0, False), (0.01, False), (0.05, False), (0.2, False), (0, True)):
            content["folder"] = str(folder / f"{flipped}-{is_loud}")
            made = validate_settings(OnlineSettings, content)
            learner = Learner(OnlineModel.load(made.model), made)
            publisher = Publisher(learner, made)
            feed(learner, publisher, rows, flipped, is_loud)
            current = publisher.versions.about(publisher.versions.current().version)
            what = f"flipped {flipped:.0%}{', a loud liar' if is_loud else ''}"
            auc = current["metrics"]["holdout"]["auc"]
            print(f"{what}: published hold-out AUC {auc:.4f}, {publisher.num_refused} turned down")
            print(f"  {learner.guard.counts}")


def feed(learner, publisher, rows, flipped, is_loud):
    """Let a learner learn rows; a loud client sends half of them, all flipped."""
    draw, records = random.Random(0), []

    def add(content, moment):
        records.append(Record(learner.offset + len(records), moment, json.dumps(content).encode()))

    for n, row in enumerate(rows):
        lies = is_loud and n % 2 == 1
        client = "loud" if lies else f"client {draw.randrange(50)}"
        is_click = row["click"] ^ (lies or draw.random() < flipped)
        features = {key: value for key, value in row.items() if key != "click"}
        key = {"key": f"r{n}", "client": client}
        add({"kind": "impression", **key, "features": features}, n * 0.01)
        if is_click:
            add({"kind": "click", **key}, n * 0.01)
        if n % 100 == 99:
            learner.learn(records)
            records.clear()
            if n % 1000 == 999:
                publisher.offer()


def main():
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "poison"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--per-request", type=int, default=10, help="events of a request")
    parser.add_argument("--examples", type=int, default=40_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load(arguments) if arguments.what == "load" else poison(arguments)


if __name__ == "__main__":
    main()
