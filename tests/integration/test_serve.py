"""`deepseek serve` as its users start it: a process, sockets, signals, and clients of all kinds."""

import concurrent.futures
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

import pytest
import torch
from PIL import Image
from tests.integration.browser import CHROMIUM, Browser
from tests.unit.deploy.service.conftest import make_text_engine

from deepseek.datasets import ImageDataset
from deepseek.models import ModelEngine, VisionTransformer

pytest.importorskip("fastapi", reason="pip install 'deepseek-framework[serve]'")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    spec = ImageDataset("digits", transform="resize_8", channels=1).spec
    (folder / "digits").mkdir()
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = VisionTransformer(
            image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1
        )
        engine = ModelEngine.wrap(model)
        engine.bind(spec)
        engine.save(folder / "digits" / f"v{seed}.bin")
    return folder


class Service:
    def __init__(self, process, url):
        self.process, self.url = process, url
        self.port = int(url.rpartition(":")[2])

    def ask(self, path, body=None, kind="application/json", headers=None, timeout=120):
        """Return (status, content)."""
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": kind, **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def memory_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "deepseek.cli.main", "serve", "--port", "0", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("http://"):
                break
        else:
            raise AssertionError("".join(lines))
        service = Service(process, line.split()[0])
        deadline = time.monotonic() + 120
        while True:
            try:
                service.ask("/health")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield service
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def service(models):
    with serving("--models", models, "--max-body-mib", 1, "--max-waiting", 64) as started:
        yield started


SAMPLE = {"inputs": [[[7] * 8] * 8]}


def picture(size):
    out = io.BytesIO()
    Image.new("L", size, 128).save(out, "PNG")
    return out.getvalue()


def test_many_clients_are_answered_in_batches(service):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: service.ask("/predict", SAMPLE), range(200)))
    assert {status for status, _ in found} == {200}
    first = found[0][1]["predictions"][0]
    for _, body in found:
        assert body["predictions"][0]["label"] == first["label"]
        assert body["predictions"][0]["prob"] == pytest.approx(first["prob"], abs=1e-6)


def test_a_version_is_swapped_under_load_without_a_failed_request(service):
    stop = []

    def keep_asking(_):
        found = []
        while not stop:
            status, body = service.ask("/predict", SAMPLE)
            found.append((status, body.get("version")))
        return found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(keep_asking, n) for n in range(8)]
        try:
            for version in ("v1", "v2", "v1"):
                status, body = service.ask("/models/digits/activate", {"version": version})
                assert (status, body["active"]) == (200, version)
            began = time.perf_counter()
            status, body = service.ask("/models/digits/rollback", b"")
            assert (status, body["active"]) == (200, "v2")
            assert time.perf_counter() - began < 5  # nothing is loaded
        finally:
            stop.append(True)
        found = [entry for future in running for entry in future.result()]
    assert {status for status, _ in found} == {200}
    assert {version for _, version in found} == {"v1", "v2"}


def test_bombs_and_floods_do_not_keep_a_good_client_from_its_answer(service):
    before = service.memory_bytes()
    bomb = picture((20_000, 5_000))  # 100 megapixels in some 100 KiB
    deep = b"[" * 500_000
    large = bytes(1 << 20) + b"x"

    def attack(number):
        kind = ("image/png", "application/json", "image/png")[number % 3]
        try:
            return service.ask("/predict", (bomb, deep, large)[number % 3], kind)[0]
        except OSError:  # the service hung up before all of it was sent
            return 413

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        attacks = [pool.submit(attack, number) for number in range(90)]
        good = [service.ask("/predict", SAMPLE)[0] for _ in range(100)]
        statuses = [future.result() for future in attacks]
    assert good.count(200) >= 99
    assert set(statuses) <= {400, 413, 429}
    assert service.memory_bytes() - before < 512 << 20


HOST = b"HTTP/1.1\r\nHost: localhost\r\n"
SLOW = (
    b"",
    b"POST /predict " + HOST + b"Content-Le",  # half a head
    b"POST /predict " + HOST + b"Content-Length: 1000\r\n\r\n{",  # then a byte now and then
    100 * (b"GET /openapi.json " + HOST + b"\r\n"),  # megabytes of answers, never read
)


def test_slow_clients_do_not_keep_others_out(service):
    slow = []
    for number in range(200):
        client = socket.create_connection(("127.0.0.1", service.port))
        client.sendall(SLOW[number % len(SLOW)])
        slow.append(client)
    try:
        for _ in range(20):
            for client in slow[2 :: len(SLOW)]:
                with suppress(OSError):  # its body took too long: it was hung up on
                    client.sendall(b" ")
            assert service.ask("/predict", SAMPLE)[0] == 200
    finally:
        for client in slow:
            client.close()


FINDING = {"x": -41.21, "y": 12, "z": -88.5, "diameter_mm": 7.93, "score": 0.934}
SPAN = {"kind": "ticker", "text": "$TSLA", "start": 0, "end": 5}
ANSWERS = [
    (
        {"findings": [FINDING]},
        [
            ["x, y, z in mm", "diameter in mm", "score"],
            ["-41.2, 12.0, -88.5", "7.9", "93.4 %"],
        ],
    ),
    ({"findings": []}, [["Nothing was found."]]),
    ({"ml": {"anterior": 2.025}}, [["anterior", "2.02 ml"]]),
    (
        {"predictions": [{"spans": [SPAN, {**SPAN, "prob": 0.5}]}]},
        [["$TSLA", "ticker", ""], ["$TSLA", "ticker", "50.0 %"]],
    ),
    ({"predictions": [{"scores": {"click": 0.31234}}]}, [["click", "0.3123"]]),
    ({"predictions": [{"tasks": {"size": {"value": 1.5}}}]}, [["size:"], ["1.5"]]),
]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
def test_a_picture_is_dropped_on_the_page_and_its_classes_are_shown(service, tmp_path):
    (tmp_path / "seven.png").write_bytes(picture((8, 8)))
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(service.url + "/")
        browser.wait_for("document.querySelectorAll('#model option').length")
        browser.choose_file("#file", tmp_path / "seven.png")
        rows = browser.wait_for(
            "[...document.querySelectorAll('#result tr')].map((row) => row.innerText)"
        )
        browser.screenshot(tmp_path / "page.png")
        assert len(rows) == 5
        assert all("%" in row for row in rows)
        browser.choose_file("#file", __file__)  # no picture
        said = browser.wait_for("document.getElementById('error').textContent")
        assert "the picture" in said
        for content, rows in ANSWERS:
            shown = f"[...tableOf({json.dumps(content)}).rows]"
            cells = f"{shown}.map((row) => [...row.cells].map((cell) => cell.textContent))"
            assert browser.run(cells) == rows
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
def test_the_interface_is_shown_and_tried_without_the_internet(service, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(f"http://127.0.0.1:{service.port}/docs")
        browser.wait_for("!!document.getElementById('post-predict')")
        assert browser.run("document.querySelectorAll('details').length") > 10
        browser.run("document.querySelector('#get-health button').click()")
        shown = browser.wait_for("document.querySelector('#get-health pre').textContent")
        assert "200 in" in shown
        assert '"status": "ok"' in shown
        assert shown.startswith("curl -X GET 'http://127.0.0.1:")
        assert browser.errors == []
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
def test_a_text_is_written_on_the_page_and_its_classes_are_shown(tmp_path):
    make_text_engine(tmp_path).save(tmp_path / "reviews.bin")
    browser = Browser(tmp_path / "profile")
    try:
        with serving(tmp_path / "reviews.bin") as started:
            browser.open(started.url + "/")
            browser.wait_for("!document.getElementById('write').hidden")
            browser.run("document.getElementById('text').value = 'a good film'")
            browser.run("document.querySelector('#write button').click()")
            rows = browser.wait_for(
                "[...document.querySelectorAll('#result tr')].map((row) => row.innerText)"
            )
        browser.screenshot(tmp_path / "page.png")
    finally:
        browser.close()
    assert {row.split()[0] for row in rows} == {"pos", "neg"}


def test_a_slow_body_is_given_up(models):
    with serving("--models", models, "--body-s", 2) as started:
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", started.port), timeout=60) as client:
            client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer and (part := client.recv(1000)):
                answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert 1.9 < time.monotonic() - began < 20


def test_what_has_begun_is_answered_before_the_service_ends(models):
    with serving("--models", models) as started:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = [pool.submit(started.ask, "/predict", SAMPLE) for _ in range(8)]
            time.sleep(0.05)
            started.process.send_signal(signal.SIGTERM)
            done = [future for future in running if not _refused(future)]
        assert all(future.result()[0] == 200 for future in done)
        assert started.process.wait(20) in (0, 143, -15)


def _refused(future):
    """Whether it came too late: nobody listened any more."""
    return isinstance(future.exception(), OSError)


def test_outside_loopback_a_token_is_needed(models, tmp_path):
    command = [sys.executable, "-m", "deepseek.cli.main", "serve"]
    refused = subprocess.run(
        [*command, "--models", models, "--host", "0.0.0.0", "--port", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "host=0.0.0.0 can be reached from other machines" in refused.stderr
    file = tmp_path / "tokens.txt"
    made = subprocess.run(
        [*command, "--new-token", file], capture_output=True, text=True, check=True
    )
    token = made.stdout.strip()
    assert token.startswith("ds_")
    with serving("--models", models, "--host", "0.0.0.0", "--token-file", file) as started:
        assert started.ask("/health")[0] == 401
        assert started.ask("/health", headers={"Authorization": f"Bearer {token}"})[0] == 200
        if CHROMIUM is not None:
            give_token_on_page(f"http://127.0.0.1:{started.port}/", token, tmp_path)


def give_token_on_page(url, token, folder):
    browser = Browser(folder / "profile")
    try:
        browser.open(url)
        browser.wait_for("document.getElementById('ask') && !document.getElementById('ask').hidden")
        assert not browser.run("document.querySelectorAll('#model option').length")
        for given in ("wrong", token):
            browser.run(f"document.getElementById('token').value = '{given}'")
            browser.run("document.getElementById('token').dispatchEvent(new Event('change'))")
            if given == "wrong":
                said = browser.wait_for("document.getElementById('error').textContent")
                assert said == "This token is not known."
        browser.wait_for("document.querySelectorAll('#model option').length")
        (folder / "seven.png").write_bytes(picture((8, 8)))
        browser.choose_file("#file", folder / "seven.png")
        assert browser.wait_for("document.querySelectorAll('#result tr').length") == 5
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to serve"),
        (["none.bin"], "none.bin is not a file"),
        (["--models", "none"], "models=none is not a folder"),
        (["--precision", "int3"], "there is nothing to serve"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    from deepseek.cli.main import run

    assert run(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err
