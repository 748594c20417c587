"""What the service answers while something else is slow."""

import asyncio
import fcntl
import os
import threading

import pytest

httpx = pytest.importorskip("httpx", reason="pip install 'deepseek-framework[serve]'")
pytest.importorskip("fastapi", reason="pip install 'deepseek-framework[serve]'")

from deepseek.recsys.online.app import make_app  # noqa: E402
from deepseek.recsys.online.online_model import OnlineModel  # noqa: E402
from deepseek.recsys.online.ranker import Ranker  # noqa: E402
from deepseek.recsys.online.sqlite_log import SqliteLog  # noqa: E402
from deepseek.recsys.online.versions import Versions  # noqa: E402


@pytest.mark.parametrize("path", ["/v1/rollback", "/v1/release"])
def test_others_are_answered_while_the_pointer_is_held(settings, path):
    made = settings()
    ranker = Ranker(made)
    versions = Versions(made.path / "versions")
    for _ in range(2):
        versions.publish(lambda folder: ranker.answers.model.engine.save(folder / "model.bin"),
                         {"offset": 0})  # fmt: skip
    log = SqliteLog(made.path / "log" / "events.db")
    app = make_app(made, log, ranker)
    # of another descriptor, and so as good as another process
    held = os.open(versions.folder / ".lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    at_last = threading.Timer(60, fcntl.flock, (held, fcntl.LOCK_UN))  # a test that fails ends
    at_last.start()

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            waiting = asyncio.create_task(client.post(path))
            for _ in range(100):  # the other one comes to the lock
                await asyncio.sleep(0)
            answer = await client.get("/health")
            was_held = not waiting.done() and at_last.is_alive()
            fcntl.flock(held, fcntl.LOCK_UN)
            return answer.status_code, was_held, (await waiting).json()

    try:
        status, was_held, pointer = asyncio.run(main())
    finally:
        at_last.cancel()
        os.close(held)
        log.close()
    assert (status, was_held) == (200, True)
    assert pointer == {"version": 1 if path == "/v1/rollback" else 2,
                       "is_pinned": path == "/v1/rollback"}  # fmt: skip


@pytest.fixture
def service(settings):
    """A service that has two versions: the application, and the versions."""
    made = settings()
    versions, model = Versions(made.path / "versions"), OnlineModel.load(made.model)
    for _ in range(2):
        versions.publish(lambda folder: model.engine.save(folder / "model.bin"), {"offset": 0})
    log = SqliteLog(made.path / "log" / "events.db")
    yield make_app(made, log, Ranker(made)), versions
    log.close()


def answers(app, *requests):
    """Return the answers to (method, path), one after the other."""

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(*each) for each in requests]

    return asyncio.run(main())


def test_the_counter_of_the_version_is_that_which_answers(service):
    asked = [("GET", "/metrics"), ("POST", "/v1/rollback"), ("GET", "/metrics")]
    before, _, after = answers(service[0], *asked)
    assert "\ndeepseek_online_version 2.0\n" in before.text
    assert "\ndeepseek_online_version 1.0\n" in after.text


def test_a_version_that_is_half_deleted_hides_no_other(service):
    app, versions = service
    (versions.path(1) / "about.json").unlink()
    [status] = answers(app, ("GET", "/v1/status"))
    assert [about["version"] for about in status.json()["versions"]] == [2]
