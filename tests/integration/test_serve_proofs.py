"""What the service promises, by weight of numbers: mostly long tests."""

import asyncio
import concurrent.futures
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from tests.integration.test_serve import SAMPLE, picture, serving

from deepseek.datasets import ImageDataset
from deepseek.deploy.artefact import convert
from deepseek.models import ModelEngine, VisionTransformer

pytest.importorskip("fastapi", reason="pip install 'deepseek-framework[serve]'")
GIB = 1 << 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "digits").mkdir()
    torch.manual_seed(1)
    engine = ModelEngine.wrap(
        VisionTransformer(image_size=8, patch_size=4, num_layers=1, dim=16, heads=2, channels=1)
    )
    engine.bind(ImageDataset("digits", transform="resize_8", channels=1).spec)
    engine.save(folder / "digits" / "v1.bin")
    return folder


@pytest.fixture(scope="module")
def service(models):
    with serving("--models", models, "--max-body-mib", 1, "--max-waiting", 512) as started:
        yield started


def fuzz(url, count):
    """Send requests that fit the interface, and such that do not; return their statuses."""
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    statuses = []
    for found in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            operation = found.ok()

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=count, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def ask(case):
                statuses.append(case.call().status_code)

            # nothing can be wrong with a request that has no arguments
            with suppress(schemathesis.errors.SchemathesisError, Unsatisfiable):
                ask()
    return statuses


def test_no_request_that_a_schema_makes_ends_in_an_error_of_the_server(service):
    statuses = fuzz(service.url, 3)
    assert len(statuses) >= 30
    assert max(statuses) < 500


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_request_of_two_thousand_ends_in_an_error_of_the_server(service):
    statuses = fuzz(service.url, 250)
    assert len(statuses) >= 2000
    assert max(statuses) < 500


async def keep_asking(port, until, times, statuses):
    """Ask again as soon as the answer is there, on one connection."""
    body = json.dumps(SAMPLE).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        times.append(time.perf_counter() - began)
        statuses.append(int(answer.split()[1]))
    writer.close()


@pytest.mark.long
def test_two_hundred_clients_for_a_minute_all_get_their_answers(service, capsys):
    times, statuses = [], []

    async def run():
        until = time.perf_counter() + 60
        clients = (keep_asking(service.port, until, times, statuses) for _ in range(200))
        await asyncio.gather(*clients)

    asyncio.run(run())
    assert set(statuses) == {200}
    times.sort()
    with capsys.disabled():
        at = {share: 1e3 * times[int(share * len(times))] for share in (0.5, 0.99)}
        print(f"\n{len(times)} requests, p50 {at[0.5]:.0f} ms, p99 {at[0.99]:.0f} ms")


def memory_bytes(pid):
    """Return the memory of a process and of those below it, shared pages divided."""
    own = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("Pss:")[2].split()[0]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(own) + sum(memory_bytes(child) for child in children)


def send_endlessly(port, size):
    """Send a body in parts, without saying how long it is; return when the service hangs up."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    part = bytes(1 << 16)
    with socket.create_connection(("127.0.0.1", port)) as client:
        try:
            client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(size >> 16):
                client.sendall(b"10000\r\n" + part + b"\r\n")
        except OSError:
            pass


def promise(port, size):
    """Say that a body of a size comes, and send nothing; return what the service says to that."""
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head.encode())
        return client.recv(1000)


@pytest.mark.long
def test_an_hour_of_malice_in_a_minute_leaves_the_good_client_and_the_memory_alone(service):
    assert service.ask("/predict", picture((8, 8)), "image/png")[0] == 200
    before, stop = memory_bytes(service.process.pid), threading.Event()
    bomb, deep = picture((20_000, 5_000)), b"[" * 500_000
    silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]

    def attack(number):
        while not stop.is_set():
            try:
                if number % 4 == 0:
                    send_endlessly(service.port, GIB)
                elif number % 4 == 1:
                    service.ask("/predict", deep)
                elif number % 4 == 2:
                    service.ask("/predict", bomb, "image/png")
                else:
                    promise(service.port, GIB)
            except (OSError, ValueError):
                pass

    peak, good = before, []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        attacks = [pool.submit(attack, number) for number in range(16)]
        until = time.monotonic() + 45
        while time.monotonic() < until:
            good.append(service.ask("/predict", SAMPLE)[0])
            peak = max(peak, memory_bytes(service.process.pid))
        stop.set()
        for done in attacks:
            done.result()
    for client in silent:
        client.close()
    assert good.count(200) >= 0.99 * len(good)
    assert peak - before < 512 << 20


def worker_of(service):
    """Return the process of the model."""
    for child in (
        Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    ):
        if b"model_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


@pytest.mark.long
def test_swaps_to_the_file_of_a_runtime_and_a_dead_model_under_load(models):
    pytest.importorskip("onnxruntime")
    engine = ModelEngine.load(models / "digits" / "v1.bin")
    inputs = torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8)
    convert(engine, models / "digits" / "v1.onnx", inputs, "onnxruntime")
    with serving("--models", models) as started:
        stop = []

        def keep(_):
            found = []
            while not stop:
                status, body = started.ask("/predict", SAMPLE)
                found.append((status, body.get("version")))
            return found

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            running = [pool.submit(keep, n) for n in range(8)]
            for version in ("v1", "v1.onnx", "v1"):
                time.sleep(1)
                status, _ = started.ask(
                    "/models/digits/activate", {"version": version}, timeout=120
                )
                assert status == 200
            stop.append(True)
            found = [entry for future in running for entry in future.result()]
        assert {status for status, _ in found} == {200}
        assert {version for _, version in found} == {"v1", "v1.onnx"}
        os.kill(worker_of(started), signal.SIGKILL)
        began = time.monotonic()
        statuses = set()
        while not statuses or status != 200:
            status, _ = started.ask("/predict", SAMPLE)
            statuses.add(status)
            assert time.monotonic() - began < 120
        assert statuses <= {200, 503}
