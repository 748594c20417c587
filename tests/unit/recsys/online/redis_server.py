"""A Redis server of a test's own."""

import socket
import subprocess
import time

import redis


class Server:
    """A Redis server of its own."""

    def __init__(self, folder, fsync="always"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", fsync, "--save", "",
        ]  # fmt: skip
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()
