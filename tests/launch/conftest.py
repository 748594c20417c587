"""Launchers as processes of their own, on one host or on two that are network namespaces."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "deepseek.cli.main", "launch"]
COUNTING_WORKER = Path(__file__).with_name("counting_worker.py")
BAD_CABLE = Path(__file__).with_name("bad_cable.py")
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}


def wait_until(condition, timeout_s, what):
    """Return what `condition` returns once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return value


class Launcher:
    """A running `deepseek launch`; its output goes to files."""

    def __init__(self, folder, arguments, prefix=(), environment=()):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tmp = folder / "tmp"
        self.tmp.mkdir(exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self._files = [folder / f"{number}.out", folder / f"{number}.err"]
        streams = [file.open("wb") for file in self._files]
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *map(str, arguments)],
            stdout=streams[0],
            stderr=streams[1],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(self.tmp), "PYTHONUNBUFFERED": "1"}
            | dict(environment),
        )
        for stream in streams:
            stream.close()

    @property
    def out(self):
        return self._files[0].read_text()

    @property
    def err(self):
        return self._files[1].read_text()

    def wait(self, timeout_s=240):
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_s} s\n{self.out}\n{self.err}")

    def generation(self):
        """Return the newest folder of a generation."""
        found = sorted(self.tmp.glob("deepseek-launch-*/generation_*"))
        return found[-1] if found else None

    def pids(self):
        """Return the process ids of the agent and of the workers of this generation."""
        folder = self.generation()
        if folder is None or not (folder / "agent.pid").exists():
            return None, []
        workers = [int(path.name) for path in (folder / "workers").glob("*")]
        return int((folder / "agent.pid").read_text()), workers

    def wait_for_workers(self, count, timeout_s=240):
        wait_until(lambda: len(self.pids()[1]) >= count, timeout_s, f"{count} workers")
        return self.pids()

    def end(self):
        for pid in (self.process.pid, *self.pids()[1]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def launch(tmp_path):
    """Return a function that starts `deepseek launch ARGUMENTS` on this host."""
    started = []

    def start(*arguments, environment=(), prefix=()):
        started.append(Launcher(tmp_path / "host", arguments, prefix, environment))
        return started[-1]

    yield start
    for launcher in started:
        launcher.end()


@pytest.fixture
def wait():
    """Return a function that waits until something is true."""
    return lambda condition, timeout_s=240: wait_until(condition, timeout_s, "what is waited for")


def ip(*words, check=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


class Hosts:
    """Two hosts, `a` and `b`, joined by one cable."""

    def __init__(self, folder):
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._tag = f"{os.getpid() % 100000}"
        self._launchers = []
        self._cable = None

    def name(self, host):
        return f"launch_{host}_{self._tag}"

    def device(self, host):
        return f"v{host}{self._tag}"

    def set_up(self):
        for host in ADDRESSES:
            ip("netns", "add", self.name(host))
            ip("-n", self.name(host), "link", "set", "lo", "up")
        ends = [("netns", self.name(host)) for host in ADDRESSES]
        ip("link", "add", self.device("a"), *ends[0], "type", "veth", "peer", "name",
           self.device("b"), *ends[1])  # fmt: skip
        self._set_addresses()

    def _set_addresses(self):
        for host, address in ADDRESSES.items():
            ip("-n", self.name(host), "addr", "add", f"{address}/24", "dev", self.device(host))
            ip("-n", self.name(host), "link", "set", self.device(host), "up")

    def use_bad_cable(self, loss, delay_s):
        """Replace the cable by one that loses a share of the frames, and delays the others."""
        ip("-n", self.name("a"), "link", "delete", self.device("a"))
        ends = [word for host in ADDRESSES for word in (self.name(host), self.device(host))]
        self._cable = subprocess.Popen(
            [sys.executable, BAD_CABLE, *ends, str(loss), str(delay_s)], stdout=subprocess.PIPE
        )
        if not self._cable.stdout.readline():
            pytest.skip("this kernel has no TAP devices")
        self._set_addresses()

    def launch(self, host, *arguments, pace_s=0.1):
        """Start the counting worker under `deepseek launch` on a host."""
        endpoints = ",".join(f"{address}:29500" for address in ADDRESSES.values())
        launcher = Launcher(
            self.folder / host,
            ["--nproc", 1, "--nnodes", "1:2", "--rdzv-id", "job", "--rdzv-endpoint", endpoints,
             "--supervise", *arguments, COUNTING_WORKER, self.shared, pace_s],
            prefix=["ip", "netns", "exec", self.name(host)],
            environment={"GLOO_SOCKET_IFNAME": self.device(host), "TEST_HOST": host,
                         "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._launchers.append(launcher)
        return launcher

    def kill_all(self, host):
        """End every process of a host at once, as a power cut does."""
        for pid in ip("netns", "pids", self.name(host), check=False).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def set_link(self, state):
        ip("-n", self.name("b"), "link", "set", self.device("b"), state)

    def steps(self):
        file = self.shared / "steps.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for_steps(self, count, world_size, timeout_s=180, host=None):
        """Wait for that many further steps of a world of that size (led by `host`)."""
        seen = len(self.steps())

        def has_them():
            new = self.steps()[seen:]
            fitting = [step for step in new if step["world_size"] == world_size]
            return len([step for step in fitting if host in (None, step["host"])]) >= count

        try:
            wait_until(has_them, timeout_s, f"{count} steps of {world_size} hosts")
        except AssertionError as error:
            told = "\n".join(launcher.err for launcher in self._launchers)
            pytest.fail(f"{error}\n{told}\n{self.steps()[-5:]}")

    def finish(self):
        (self.shared / "enough").touch()

    def tear_down(self):
        if self._cable is not None:
            self._cable.kill()
            self._cable.wait()
            self._cable.stdout.close()
        for host in ADDRESSES:
            self.kill_all(host)
        for launcher in self._launchers:
            launcher.process.wait()
        for host in ADDRESSES:
            ip("netns", "delete", self.name(host), check=False)


@pytest.fixture
def hosts(tmp_path):
    """Return two hosts with addresses of their own."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip`")
    both = Hosts(tmp_path)
    try:
        try:
            both.set_up()
        except AssertionError as error:
            pytest.skip(f"network namespaces do not work here: {error}")
        yield both
    finally:
        both.tear_down()
