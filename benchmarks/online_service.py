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
POISONS = ((0, False), (0.01, False), (0.05, False), (0.2, False), (0, True))
"""Shares of flipped labels, and whether a client sends as many examples again, all flipped."""


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


def write_model(path, rows, epochs=0):
    """Write an FM, trained for some passes over the rows."""
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
    batch = OnlineModel(engine).encode(rows)
    labels = torch.tensor(columns["click"], dtype=torch.float32)
    optimizer = torch.optim.Adagrad(engine.parameters(), lr=0.05)
    for part in torch.arange(len(rows)).split(256) * epochs:
        optimizer.zero_grad()
        logits = engine({name: each[part] for name, each in batch.items()})
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[part]).backward()
        optimizer.step()
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
    """HTTP/1.1, one request at a time; what does not answer for so long is an error."""

    def __init__(self, url, timeout_s=5.0):
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._streams, self._timeout_s = None, timeout_s

    async def ask(self, path, body=None):
        """Return status and content; status 0: no answer."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(path, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None  # a new one for the next
            return 0, b"{}"

    async def _ask(self, path, body):
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body or b'')}\r\n\r\n"
        writer.write(head.encode() + (body or b""))
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        size = next(int(each[15:]) for each in lines if each.startswith("content-length:"))
        return int(lines[0].split()[1]), await reader.readexactly(size)


async def every(rate, seconds, work, width):
    """Call `work` at a rate, whatever its answers take; `width` of them at a time at most."""
    free = asyncio.Queue()
    for number in range(width):
        free.put_nowait(number)
    began, tasks = time.perf_counter(), []

    async def one(number, due):
        at = await free.get()
        try:
            await work(number, at, due)
        finally:
            free.put_nowait(at)

    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)


def make_bodies(count, per_request, name):
    """Return requests of events: impressions, and of those that are clicked a click 100 later."""
    rows = make_rows(count, 1)
    events, due = [], []
    for n, row in enumerate(rows):
        events.append(impression(f"{name}{n}", row))
        if row["click"]:
            due.append((n + 100, {"kind": "click", "request_id": f"{name}{n}"}))
        while due and due[0][0] <= n:
            events.append(due.pop(0)[1])
    parts = range(0, count - per_request + 1, per_request)
    return [json.dumps({"events": events[n : n + per_request]}).encode() for n in parts]


def make_questions():
    """Return requests to rank 100 candidates."""
    draw, questions = random.Random(0), []
    items = [{key: row[key] for key in ("item_id", "genre", "price")} for row in make_rows(5000, 1)]
    for n in range(200):
        asked = {"user": {"user_id": f"u{n}"}, "context": {"hour": n % 24}}
        questions.append(json.dumps({**asked, "candidates": draw.sample(items, 100)}).encode())
    return questions


class Load:
    """Clients of a service, and what they saw.

    Attributes:
        ranked, taken: seconds of rankings and of requests with events, from when they were due.
        fresh: seconds until a click was in what is predicted.
        errors: (what, status); 0: no answer.
    """

    def __init__(self, url, name, arguments):
        self.url, self.name, self.arguments = url, name, arguments
        self.ranked, self.taken, self.fresh, self.errors = [], [], [], []
        self._connections = [Connection(url) for _ in range(64)]
        self._questions = make_questions()

    async def run(self, seconds):
        """Ask for so long."""
        given = self.arguments
        bodies = make_bodies(int(given.events * seconds), given.per_request, self.name)

        async def send(number, at, due):
            status, _ = await self._connections[32 + at].ask("/v1/events", bodies[number])
            self._note("events", status, self.taken, due)

        requests = given.events / given.per_request
        await asyncio.gather(
            every(given.ranks, seconds, self._rank, 32),
            every(requests, len(bodies) / requests, send, 32),
            every(0.5, seconds, self._probe, 8),
        )

    async def _rank(self, number, at, due):
        question = self._questions[number % len(self._questions)]
        status, _ = await self._connections[at].ask("/v1/rank", question)
        self._note("rank", status, self.ranked, due)

    def _note(self, what, status, times, due):
        times.append(time.perf_counter() - due)
        if status != 200:
            self.errors.append((what, status))

    async def _probe(self, number, at, due):
        """How long until a click of a user of its own is in what is predicted for that user."""
        user = f"{self.name} {number}"
        row = {"item_id": f"probe{number}", "genre": "g1", "price": 1.0}
        question = {"user": {"user_id": user, "hour": 1}, "candidates": [row]}
        question = json.dumps(question).encode()
        shown = impression(user, {**row, "user_id": user, "hour": 1})
        body = {"events": [shown, {"kind": "click", "request_id": user}]}
        asked = Connection(self.url)
        before = json.loads((await asked.ask("/v1/rank", question))[1])
        began = time.perf_counter()
        status, answer = await asked.ask("/v1/events", json.dumps(body).encode())
        if status != 200:
            self.errors.append(("probe", status))
            return
        clicked = json.loads(answer)["offsets"][1]
        while time.perf_counter() < began + 10:
            status, answer = await asked.ask("/v1/rank", question)
            now = json.loads(answer) if status == 200 else before
            if now["offset"] > clicked and now["probs"] != before["probs"]:
                self.fresh.append(time.perf_counter() - began)
                return
            await asyncio.sleep(0.01)
        self.errors.append(("probe", "not in a version after 10 s"))


def start(folder):
    """Return a service of its own, and its address."""
    write_model(folder / "model.bin", make_rows(20_000, 2), epochs=2)
    content = settings_of(folder)
    content["join"]["labels"]["click"]["window"] = "2s"
    (folder / "cfg.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "deepseek.cli.main", "online", "serve"]
    service = subprocess.Popen(
        [*command, str(folder / "cfg.yaml")], stdout=subprocess.PIPE, text=True
    )
    for line in service.stdout or ():
        for word in line.split():
            if word.startswith("http://"):
                return service, word
    raise SystemExit(f"the service ended with {service.wait()} before it answered")


def load(arguments):
    """Measure a service of its own."""
    with tempfile.TemporaryDirectory() as name:
        service, url = start(Path(name))
        try:
            asyncio.run(Load(url, "warm", arguments).run(min(3.0, arguments.seconds)))
            began = time.perf_counter()
            measured = Load(url, "load", arguments)
            asyncio.run(measured.run(arguments.seconds))
            spent = time.perf_counter() - began
            status = json.loads(asyncio.run(Connection(url, 30.0).ask("/v1/status"))[1])
        finally:
            service.terminate()
            service.wait()
    print(f"{spent:.1f} s for {arguments.seconds:g} s of requests")
    print(f"{len(measured.ranked)} rankings, {len(measured.taken)} requests with events")
    print(f"{len(measured.errors)} errors {sorted(set(map(str, measured.errors)))[:5]}")
    for what, values, unit in (
        ("rank", np.array(measured.ranked) * 1e3, "ms"),
        ("events taken", np.array(measured.taken) * 1e3, "ms"),
        ("event to prediction", np.array(measured.fresh), "s"),
    ):
        marks = [*(np.percentile(values, q) for q in (50, 90, 99)), max(values)]
        shown = "  ".join(
            f"{q} {v:.2f}" for q, v in zip(("p50", "p90", "p99", "max"), marks, strict=True)
        )
        print(f"{what}: {shown} {unit}")
    print(
        f"version {status['version']}, {status['refused']} turned down, learnt"
        f" {status['offset']:,} of {status['end']:,} events"
    )
    own = resource.getrusage(resource.RUSAGE_SELF)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = [each.ru_utime + each.ru_stime for each in (theirs, own)]
    print(f"processor time: service {spent_s[0]:.1f} s, clients {spent_s[1]:.1f} s")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


def poison(arguments):
    """Learn from poisoned streams, and print what was published."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = map(json.dumps, make_rows(4000, 3))
        (folder / "holdout.jsonl").write_text("\n".join(lines))
        content = settings_of(folder, gate={"holdout": str(folder / "holdout.jsonl")})
        rows = make_rows(arguments.examples, 4)
        for start, epochs in (("untrained", 0), ("trained", 2)):
            write_model(folder / "model.bin", make_rows(5000, 2), epochs)
            for number, (flipped, is_loud) in enumerate(POISONS):
                content["folder"] = str(folder / f"{start}-{number}")
                made = validate_settings(OnlineSettings, content)
                learner = Learner(OnlineModel.load(made.model), made)
                publisher = Publisher(learner, made)
                feed(learner, publisher, rows, flipped, is_loud)
                current = publisher.versions.about(publisher.versions.current().version)
                what = f"{start}, {flipped:.0%} flipped{', a loud liar beside them' * is_loud}"
                auc = current["metrics"]["holdout"]["auc"]
                print(f"{what}: published AUC {auc:.4f}, {publisher.num_refused} turned down")
                print(f"  {learner.guard.counts}", flush=True)


def feed(learner, publisher, rows, flipped, is_loud):
    """Let a learner learn rows; beside each one a loud client sends another one, flipped."""
    draw, records = random.Random(0), []
    lies = make_rows(len(rows), 5) if is_loud else []

    def add(name, row, client, is_flipped, moment):
        features = {key: value for key, value in row.items() if key != "click"}
        key = {"key": name, "client": client}
        events = [{"kind": "impression", **key, "features": features}]
        events += [{"kind": "click", **key}] if row["click"] ^ is_flipped else []
        for event in events:
            offset = learner.offset + len(records)
            records.append(Record(offset, moment, json.dumps(event).encode()))

    for n, row in enumerate(rows):
        add(f"r{n}", row, f"client {draw.randrange(50)}", draw.random() < flipped, n * 0.01)
        if is_loud:
            add(f"lie {n}", lies[n], "loud", True, n * 0.01)
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
    parser.add_argument("--events", type=float, default=1000, help="a second")
    parser.add_argument("--ranks", type=float, default=200, help="requests to rank a second")
    parser.add_argument("--per-request", type=int, default=10, help="events of a request")
    parser.add_argument("--examples", type=int, default=40_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load(arguments) if arguments.what == "load" else poison(arguments)


if __name__ == "__main__":
    main()
