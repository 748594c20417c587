"""A worker of the loader that is killed, hangs, raises or runs out of memory."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from deepseek.datasets import DataLoader
from deepseek.errors import DataError


class Troubled(Dataset):
    """Does something at sample 13: always, or only the first time."""

    def __init__(self, trouble, marker=None):
        self.trouble, self.marker = trouble, marker
        self.targets = [0] * 40  # so that nobody reads all samples for them

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 13 and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            self.trouble()
        return torch.full((2,), float(index)), 0


def kill():
    if get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def fail():
    raise KeyError("label")


def run_out():
    raise MemoryError


def tell_and_hang():
    print(os.getpid(), flush=True)
    hang()


def load(data, **settings):
    loader = DataLoader(data, batch_size=4, shuffle=False, num_workers=2, **settings)
    return [int(x) for batch in loader for x in batch["inputs"][:, 0]]


@pytest.mark.parametrize(("trouble", "timeout_s"), [(kill, 600.0), (hang, 5.0)])
def test_a_worker_that_is_lost_once_is_replaced_and_nothing_is_lost(tmp_path, trouble, timeout_s):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(Troubled(trouble, tmp_path / "done"), worker_timeout_s=timeout_s)
    assert found == list(range(40))
    assert any("restarted" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("trouble", "what"),
    [(kill, "died reading sample 13"), (hang, "hung for 5 s reading sample 13")],
)
def test_a_worker_that_is_lost_again_ends_the_run_and_the_sample_is_named(trouble, what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=what):
            load(Troubled(trouble), worker_timeout_s=5.0)


@pytest.mark.parametrize(
    ("trouble", "what"), [(fail, "KeyError: 'label'"), (run_out, "MemoryError")]
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_that_raises_is_named_with_its_line(trouble, what, num_workers):
    loader = DataLoader(Troubled(trouble), batch_size=4, num_workers=num_workers)
    with pytest.raises(
        DataError, match=f"sample 13 of Troubled.*{what}.*test_workers.py"
    ) as caught:
        list(loader)
    assert caught.value.exit_code == 3
    if trouble is run_out:
        assert "num_workers" in caught.value.fix


def test_a_worker_that_is_killed_between_epochs_is_replaced():
    handler = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(Troubled(lambda: None), batch_size=4, shuffle=False, num_workers=2)
    assert len(list(loader)) == 10
    lost = loader.worker_pids()[0]
    os.kill(lost, signal.SIGKILL)
    while lost in loader.worker_pids():
        time.sleep(0.01)
    with pytest.warns(UserWarning, match="do not go on: one has exited unexpectedly.*restarted"):
        found = [int(x) for batch in loader for x in batch["inputs"][:, 0]]
    assert found == list(range(40))
    assert lost not in loader.worker_pids()
    assert signal.getsignal(signal.SIGCHLD) is handler
    loader.close()


def test_an_epoch_is_broken_off_while_a_batch_takes_longer_than_torch_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("deepseek.datasets.workers.RESUME_S", 1.0)
    data = Troubled(hang, tmp_path / "done")
    loader = DataLoader(data, batch_size=4, shuffle=False, num_workers=2, worker_timeout_s=5.0)
    for _ in loader:
        break
    with pytest.warns(UserWarning, match="do not go on.*timed out.*restarted"):
        found = [int(x) for batch in loader for x in batch["inputs"][:, 0]]
    assert found == list(range(4, 40))
    loader.close()


def test_a_lost_worker_does_not_disturb_the_main_thread(tmp_path):
    """torch raises out of SIGCHLD, wherever the main thread is: not here."""
    loader = DataLoader(Troubled(lambda: None), batch_size=4, num_workers=2)
    batches = iter(loader)
    next(batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for pid in loader.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            time.sleep(0.01)  # the signal of the dead child arrives here
        assert len(list(batches)) == 9


def test_a_worker_that_is_busy_ends_with_the_run_that_was_killed():
    if not Path("/proc/self/stat").exists():
        pytest.skip("reads the state of a process from /proc")
    begin = "from test_workers import *; load(Troubled(tell_and_hang))"
    run = subprocess.Popen(
        [sys.executable, "-c", begin], cwd=Path(__file__).parent, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    assert lives(worker)
    run.kill()
    run.wait()
    until = time.monotonic() + 120
    while lives(worker) and time.monotonic() < until:  # for ever, were it not for its watch
        time.sleep(0.05)
    assert not lives(worker)
    run.stdout.close()


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
