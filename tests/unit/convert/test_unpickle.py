"""A pickled module is read by a process that can do nothing else."""

import errno
import json
import os
import socket
import struct
import subprocess
import sys
import types

import pytest
import torch
import torchvision
from torch import nn

from deepseek.convert import convert, system_calls
from deepseek.convert.system_calls import check_supported
from deepseek.convert.unpickle import unpickle
from deepseek.errors import CheckpointError, ConfigError
from deepseek.models import ImageNetResNet

try:
    check_supported()
except ConfigError:
    pytest.skip("no process can be shut in on this system", allow_module_level=True)

# What a hostile class tries while it is unpickled; the findings leave as a tensor.
HOSTILE = """
import json, os, socket, subprocess, threading, torch
from torch import nn

class Hostile(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def __setstate__(self, state):
        here = os.path.dirname(__file__)
        at = lambda name: os.path.join(here, name)
        connect = lambda: socket.create_connection(("127.0.0.1", int(open(at("port")).read())), 2)
        attempts = {
            "write": lambda: open(at("made"), "w"),
            "append": lambda: open(at("victim"), "a"),
            "truncate": lambda: os.open(at("victim"), os.O_RDONLY | os.O_TRUNC),
            "make a folder": lambda: os.mkdir(at("made")),
            "remove": lambda: os.unlink(at("victim")),
            "rename": lambda: os.rename(at("victim"), at("made")),
            "link": lambda: os.symlink(at("victim"), at("made")),
            "change rights": lambda: os.chmod(at("victim"), 0o777),
            "connect": connect,
            "open a socket": lambda: socket.socket(socket.AF_UNIX),
            "run a command": lambda: subprocess.run(["true"], check=True),
            "fork": lambda: os.fork() or os._exit(0),
            "kill": lambda: os.kill(os.getppid(), 0),
            "take much memory": lambda: bytearray(64 * 2**30),
            "start a thread": lambda: threading.Thread(target=int).start(),
            "read": lambda: open(at("victim")).read(),
        }
        done = []
        for name, attempt in attempts.items():
            try:
                attempt()
                done.append(name)
            except (OSError, MemoryError, subprocess.SubprocessError):
                pass
        text = json.dumps(done).encode()
        nn.Module.__setstate__(self, state)
        self._parameters["weight"] = nn.Parameter(torch.tensor(list(text), dtype=torch.float32))

def main():
    torch.save(Hostile(), "hostile.pt")

class Slow(nn.Module):
    def __setstate__(self, state):
        import time
        time.sleep(60)

class Leaving(nn.Module):
    def __setstate__(self, state):
        raise SystemExit("\\x1b[31mI was never here")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with hostile pickles and their classes."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile_classes.py").write_text(HOSTILE)
    (folder / "victim").write_text("as it was")
    # the child is to find them; this process knows them only while it writes the files
    make = (
        "import torch, hostile_classes as h\n"
        "h.main(); torch.save(h.Slow(), 'slow.pt'); torch.save(h.Leaving(), 'leaving.pt')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    subprocess.run([sys.executable, "-c", make], check=True, cwd=folder, env=environment)
    return folder


@pytest.fixture
def hostile(written, monkeypatch):
    monkeypatch.chdir(written)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(written), *sys.path]))
    return written


def test_code_in_a_pickle_reaches_nothing(hostile):
    with socket.create_server(("127.0.0.1", 0)) as server:
        (hostile / "port").write_text(str(server.getsockname()[1]))
        before = sorted(os.listdir(hostile))
        found = unpickle(hostile / "hostile.pt")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    done = json.loads(bytes(found.state["weight"].int().tolist()))
    assert done == ["start a thread", "read"]
    assert sorted(name for name in os.listdir(hostile) if name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]
    assert (hostile / "victim").read_text() == "as it was"


def run_filter(machine, number, *arguments):
    """Return what the filter answers to a call: the few instructions of BPF that it has."""
    architecture = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}[machine]
    call = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    tests = {
        0x15: lambda known, value: known == value,
        0x35: lambda known, value: known >= value,
        0x45: lambda known, value: bool(known & value),
    }
    at, loaded = 0, 0
    code = list(struct.iter_unpack("<HBBI", system_calls._encode(machine)))
    while True:
        kind, if_true, if_false, value = code[at]
        at += 1
        if kind == 0x06:
            return value
        if kind == 0x20:
            loaded = struct.unpack_from("<I", call, value)[0]
        else:
            at += if_true if tests[kind](loaded, value) else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_calls_newer_than_the_table_do_not_exist(machine):
    allow, no_call, no_right = 0x7FFF_0000, 0x0005_0000 | errno.ENOSYS, 0x0005_0000 | errno.EPERM
    for newer in (463, 466, 469, 500, 0x3FFF_FFFF):  # setxattrat, removexattrat, file_setattr
        assert run_filter(machine, newer) == no_call
    assert run_filter(machine, 462) == allow
    assert run_filter(machine, 452) == no_right  # fchmodat2
    openat = {"x86_64": 257, "aarch64": 56}[machine]
    assert run_filter(machine, openat, 0, 0, os.O_RDONLY) == allow
    assert run_filter(machine, openat, 0, 0, os.O_WRONLY) == no_right


def test_a_pickle_that_takes_too_long_is_given_up(hostile):
    with pytest.raises(CheckpointError, match=r"not read within 0.5 s(.|\n)*Fix:"):
        unpickle(hostile / "slow.pt", timeout_s=0.5)


def test_what_a_child_says_is_shown_without_control_codes(hostile):
    with pytest.raises(CheckpointError, match=r"pickled module: \[31mI was never here \(exit"):
        unpickle(hostile / "leaving.pt")


def test_a_pickled_module_becomes_ours(tmp_path):
    torch.manual_seed(0)
    original = torchvision.models.resnet18(num_classes=3).eval()
    torch.save(original, tmp_path / "resnet.pt")
    conversion = convert(tmp_path / "resnet.pt", unsafe_pickle=True)
    assert isinstance(conversion.engine.module, ImageNetResNet)
    assert "torchvision.models.resnet.ResNet" in conversion.report.source
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(conversion.engine.eval()(images), original(images))


def test_a_class_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    net = type("Net", (nn.Linear,), {"__module__": "nowhere"})
    module = types.ModuleType("nowhere")
    vars(module)["Net"] = net
    monkeypatch.setitem(sys.modules, "nowhere", module)
    torch.save(net(2, 2), tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"No module named 'nowhere'(.|\n)*importable"):
        convert(tmp_path / "foreign.pt", unsafe_pickle=True)
