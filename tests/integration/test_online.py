"""`deepseek online serve` as its users start it: processes, clients, and SIGKILL."""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from tests.integration.browser import CHROMIUM, Browser
from tests.unit.recsys.online.conftest import click, impression, make_rows, save_model

pytest.importorskip("fastapi", reason="pip install 'deepseek-framework[serve]'")

# The command line, without its seconds of imports: each line it reads begins a service.
LAUNCHER = """
import os, pathlib, signal, sys, traceback
import deepseek.recsys.online.service
from deepseek.cli import online
from deepseek.recsys.online.online_model import OnlineModel
import torch
torch.set_num_threads(1)
OnlineModel.load(pathlib.Path(sys.argv[1]).with_name("model.bin"))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        sys.stdout = open(line.strip(), "w")
        try:
            online.serve(pathlib.Path(sys.argv[1]), None)
        except Exception:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(0)
    print(pid, flush=True)
"""


def ask(url, body=None, token=None, timeout=30):
    """Return (status, content)."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    headers |= {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read()
            kind = answer.headers["Content-Type"]
            return answer.status, json.loads(content) if "json" in kind else content.decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def wait_for(what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


class Services:
    """Starts services of one folder, one after the other."""

    def __init__(self, folder, config):
        self.folder, self.config, self._number = folder, config, 0
        self._pids = []
        with open(folder / "errors.txt", "w") as errors:
            self._launcher = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(config)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        assert self._launcher.stdout.readline() == "up\n", (folder / "errors.txt").read_text()

    def start(self):
        """Return (pid, url) of a service that answers."""
        self._number += 1
        said = self.folder / f"said_{self._number}.txt"
        self._launcher.stdin.write(f"{said}\n")
        self._launcher.stdin.flush()
        pid = int(self._launcher.stdout.readline())
        self._pids.append(pid)

        def url():
            lines = said.read_text().split() if said.exists() else []
            found = [each for each in lines if each.startswith("http://")]
            if not found and not _is_there(pid):
                raise AssertionError((self.folder / "errors.txt").read_text())
            return found[0] if found else None

        return pid, wait_for(url)

    def close(self):
        for pid in self._pids[-1:]:  # a test that failed has left it
            if _is_there(pid):
                os.kill(pid, signal.SIGKILL)
        self._launcher.stdin.close()
        self._launcher.kill()
        self._launcher.wait()
        self._launcher.stdout.close()


def _is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end(pid, number=signal.SIGTERM):
    os.kill(pid, number)
    wait_for(lambda: not _is_there(pid))


def write_config(folder, **sections):
    save_model(folder / "model.bin", make_rows(400))
    content = {
        "model": "model.bin",
        "folder": "online",
        "server": {"port": 0},
        "join": {"labels": {"click": {"event": "click", "window": "1s"}}},
        "learner": {"cut_events": 16, "tick": "0.1s", "checkpoint_every": "0.3s",
                    "publish_every": "0.3s", "lr": 0.1},
        **sections,
    }  # fmt: skip
    (folder / "cfg.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder / "cfg.yaml"


@pytest.fixture
def services(tmp_path):
    made = []

    def make(**sections):
        made.append(Services(tmp_path, write_config(tmp_path, **sections)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def caught_up(url, timeout_s=240):
    """Return the status when all was learnt and nothing waits."""

    def look():
        found = ask(url + "/v1/status")[1]
        done = found.get("lag_events") == 0 and found.get("waiting") == 0
        return found if done and found["offset"] >= found["end"] else None

    return wait_for(look, timeout_s)


def run_clients(url, acknowledged, stop, first, count=8):
    """Send events until they fail, again and again with the same id, by several threads."""

    def client(number):
        draw = random.Random(first * 100 + number)
        rows = make_rows(2000, seed=first * 100 + number)
        for n, row in enumerate(rows):
            name = f"{first}-{number}-{n}"
            batch = [impression(name, row, client=f"client {number}")]
            batch += [click(name, client=f"client {number}")] if row["click"] else []
            if draw.random() < 0.2:
                batch.append(batch[0])  # a repetition
            if draw.random() < 0.2:
                batch.reverse()
            try:
                status, content = ask(url + "/v1/events", {"events": batch}, timeout=10)
            except (OSError, http.client.HTTPException):  # killed meanwhile
                return
            assert status == 200, content
            acknowledged.extend(
                (f"{e['kind']}:{e['request_id']}", offset)
                for e, offset in zip(batch, content["offsets"], strict=True)
            )
            if stop.is_set():
                return

    threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(20, id="20"),
        pytest.param(100, id="100", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_sigkill_loses_nothing_and_applies_nothing_twice(services, num_kills):
    from deepseek.recsys.online.replay import replay
    from deepseek.recsys.online.settings import read_settings
    from deepseek.recsys.online.sqlite_log import SqliteLog

    launched = services()
    draw, acknowledged = random.Random(num_kills), []
    for number in range(num_kills):
        pid, url = launched.start()
        stop = threading.Event()
        threads = run_clients(url, acknowledged, stop, number)
        time.sleep(draw.uniform(0.1, 0.9))
        end(pid, signal.SIGKILL)  # the others die with it
        for thread in threads:
            thread.join()
    pid, url = launched.start()
    found = caught_up(url)
    end(pid)
    settings = read_settings(launched.config)
    wait_for(lambda: _is_free(settings.path / "log" / "events.lock"))
    log = SqliteLog(settings.path / "log" / "events.db", writes=False)
    names = {}
    for record in log.read(0, 1_000_000):
        content = json.loads(record.content)
        if content["kind"] != "tick":
            name = f"{content['kind']}:{content['key']}"
            assert name not in names, "applied twice"
            names[name] = record.offset
    log.close()
    assert len(acknowledged) > 5 * num_kills
    for name, offset in acknowledged:
        assert names[name] == offset
    impressions = sum(name.startswith("impression") for name in names)
    assert found["join"]["impressions"] == impressions
    again = replay(settings)
    assert again.is_equal is True
    assert again.at_checkpoint == again.offset


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="apt-get install redis-server")
def test_a_service_on_redis_learns_once_whatever_dies(services, tmp_path):
    pytest.importorskip("redis", reason="pip install 'deepseek-framework[redis]'")
    from tests.unit.recsys.online.redis_server import Server

    from deepseek.recsys.online.redis_log import RedisLog
    from deepseek.recsys.online.replay import replay
    from deepseek.recsys.online.settings import read_settings

    (tmp_path / "redis").mkdir()
    server = Server(tmp_path / "redis")
    try:
        launched = services(log={"kind": "redis", "url": server.url})
        acknowledged, ends, urls = {}, threading.Event(), {}

        def client(number):
            draw, n, rows = random.Random(number), 0, make_rows(2000, seed=number)
            while not ends.is_set():
                row, name = rows[n % len(rows)], f"{number}-{n}"
                batch = [impression(name, row), *([click(name)] if row["click"] else [])]
                batch += batch[:1] if draw.random() < 0.2 else []
                if draw.random() < 0.2:
                    batch.reverse()
                try:
                    status, content = ask(urls["now"] + "/v1/events", {"events": batch}, timeout=5)
                except (OSError, http.client.HTTPException):
                    status, content = 0, None
                if status != 200:  # the same again, with the same ids
                    time.sleep(0.02)
                    continue
                for event, offset in zip(batch, content["offsets"], strict=True):
                    acknowledged[f"{event['kind']}:{event['request_id']}"] = offset
                n += 1

        pid, urls["now"] = launched.start()
        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for kills in range(4):
            time.sleep(0.6)
            if kills % 2:
                end(pid, signal.SIGKILL)
                pid, urls["now"] = launched.start()
            else:
                server.kill()
                rank = {"user": {"user_id": "u1"}, "candidates": [{"genre": "a", "price": 1.0}]}
                assert ask(urls["now"] + "/v1/rank", rank)[0] == 200
                status, said = ask(
                    urls["now"] + "/v1/events", impression(f"x{kills}", make_rows(1)[0])
                )
                assert (status, said["error"]) == (503, "the log does not answer")
                server.start()
        time.sleep(0.6)
        ends.set()
        for thread in threads:
            thread.join()
        found = caught_up(urls["now"])
        end(pid)
        settings = read_settings(launched.config)
        log = RedisLog(server.url, settings.log.stream)
        contents = [json.loads(record.content) for record in log.read(0, 1_000_000)]
        log.close()
        names = {
            f"{each['kind']}:{each['key']}": offset
            for offset, each in enumerate(contents)
            if each["kind"] != "tick"
        }
        assert len(names) == sum(each["kind"] != "tick" for each in contents), "twice"
        assert len(acknowledged) > 100
        assert {name: names.get(name) for name in acknowledged} == acknowledged
        assert found["join"]["impressions"] == sum(name[0] == "i" for name in names)
        again = replay(settings)
        assert again.is_equal is True
        assert again.at_checkpoint == again.offset
    finally:
        server.kill()


WATCHED = """
import os, signal
from pathlib import Path
from deepseek.errors import CommunicationError, ConfigError
from deepseek.recsys.online import service
service.AWAY_S = 0.01

def waits():
    with open("tries", "a") as file:
        file.write("x")
    if len(Path("tries").read_text()) < 8:
        raise CommunicationError("the log is away", fix="start it")
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()

def cannot():
    raise ConfigError("no such column", fix="take it out")

print([service.Watch({"job": job}).run() for job in (waits, cannot)])
"""


def test_a_process_that_cannot_begin_ends_the_service_and_one_without_a_log_waits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[0, 2]\n"  # by the signal; the code of a ConfigError
    said = done.stderr.splitlines()
    assert said.count("the process that job waits: the log is away") == 7
    assert "the process that job failed: no such column" in said
    assert "Traceback" not in done.stderr


def _is_free(path):
    import fcntl

    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def test_an_event_changes_what_is_predicted(services):
    launched = services()
    pid, url = launched.start()
    rows = [{"genre": genre, "price": 1.0} for genre in "abcd"]
    question = {"user": {"user_id": "u1"}, "context": {}, "candidates": rows}
    before = ask(url + "/v1/rank", question)[1]
    assert len(before["order"]) == 4
    events = []
    for n in range(40):
        name = f"x{n}"
        events.append(impression(name, {"user_id": "u1", "genre": "c", "price": 1.0}))
        events.append(click(name))
    status, content = ask(url + "/v1/events", {"events": events})
    assert status == 200
    assert content["offsets"] == sorted(content["offsets"])
    assert ask(url + "/v1/events", {"events": events})[1] == content  # the same answer
    wait_for(lambda: ask(url + "/v1/rank", question)[1]["order"][0] == 2)
    after = ask(url + "/v1/rank", {**question, "top_k": 2})[1]
    assert len(after["order"]) == 2
    assert after["version"] > before["version"]
    assert after["probs"]["click"][0] > max(before["probs"]["click"])
    wrong = ask(url + "/v1/events", click("x1", id="click:rx2"))
    assert wrong[0] == 409
    for body, said in [
        ({"kind": "view"}, "kind='view' is unknown"),
        (click(1) | {"request_id": None}, "request_id='None' is neither"),
        (impression("y", {"genre": "a"}), "features lack price, user_id"),
    ]:
        status, content = ask(url + "/v1/events", body)
        assert status == 422
        assert said in content["error"]
    assert ask(url + "/v1/rank", {"candidates": [{"genre": "a"}]})[0] == 422
    began = time.monotonic()
    rolled = ask(url + "/v1/rollback", {"to": 1})[1]
    assert rolled == {"version": 1, "is_pinned": True}
    assert ask(url + "/v1/rank", question)[1]["version"] == 1
    assert time.monotonic() - began < 20  # 1 s is promised, on a machine that does nothing else
    assert 'deepseek_online_events_total{result="new"} 80.0' in ask(url + "/metrics")[1]
    assert ask(url + "/v1/release", {})[1] == {"version": 1, "is_pinned": False}
    end(pid)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_shows_learning_and_rolls_back(services, tmp_path):
    launched = services()
    pid, url = launched.start()
    stop = threading.Event()
    threads = run_clients(url, [], stop, 0, count=1)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(url + "/")
        browser.wait_for("document.getElementById('when').textContent === 'learner: live'")
        browser.wait_for("document.getElementById('tile_events_learnt').textContent.length > 1")
        browser.wait_for("document.querySelectorAll('#versions tr').length > 3")
        browser.wait_for("!!document.querySelector('#loss polyline')")
        browser.wait_for("!!document.querySelector('#auc polyline')")
        browser.screenshot(tmp_path / "page.png")
        browser.run("document.getElementById('back').click()")
        browser.wait_for("document.getElementById('versions').textContent.includes('pinned')")
        browser.run("document.getElementById('release').click()")
        browser.wait_for("!document.getElementById('versions').textContent.includes('pinned')")
        drawn = browser.run("document.querySelector('#auc polyline').getAttribute('points')")
        assert len(drawn.split()) >= 2
        assert browser.run("document.getElementById('error').textContent") == ""
        assert browser.errors == []
    finally:
        browser.close()
        stop.set()
        for thread in threads:
            thread.join()
    end(pid)


def test_a_token_is_asked_for(services, tmp_path):
    from deepseek.deploy.service.tokens import hash_token, new_token

    token = new_token(tmp_path / "tokens.txt")
    launched = services(server={"port": 0, "token_file": "tokens.txt"})
    pid, url = launched.start()
    assert ask(url + "/v1/status")[0] == 401
    for page in ("/", "/docs"):  # a browser sends no token: they ask for it themselves
        with urllib.request.urlopen(url + page, timeout=30) as answer:
            assert b'id="token"' in answer.read()
    row = {"user_id": "u1", "genre": "a", "price": 1.0}
    assert ask(url + "/v1/events", impression("a", row, client="liar"), token)[0] == 200
    end(pid)
    records = (tmp_path / "online" / "log" / "events.db").read_bytes()
    assert b"liar" not in records
    assert hash_token(token)[:12].encode() in records
