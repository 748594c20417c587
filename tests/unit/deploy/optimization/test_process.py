import os
import time

import pytest
from safetensors.torch import save_file

from deepseek.deploy.optimization.candidate import Candidate
from deepseek.deploy.optimization.process import Limits, run_trial


@pytest.fixture
def trial(faulty, model_file, digits, tmp_path):
    """Run the conversion of a faulty runtime."""
    batch, _ = digits.get_batch(list(range(40)), 0)
    data = {"inputs": batch["inputs"].contiguous(), "calibration": batch["inputs"][:8].clone()}
    save_file(data, tmp_path / "data.safetensors")

    def run(name, seconds=60.0, memory_bytes=None):
        task = Candidate(name.lower()).make_task(
            model_file, model_file, tmp_path / "best.bin", tmp_path / "data.safetensors",
            tmp_path / "result.json", batch_sizes=(4,), base_threads=1, seconds=0.1,
        )  # fmt: skip
        return run_trial("convert", task, tmp_path, Limits(seconds, memory_bytes))

    return run


def test_one_that_hangs_is_ended(trial):
    began = time.monotonic()
    found = trial("Hanging", seconds=2.0)
    assert found == {"error": "took longer than 2 s", "timed_out": True}
    assert time.monotonic() - began < 30


def test_one_that_takes_too_much_memory_is_ended(trial):
    found = trial("Hanging", memory_bytes=100 << 20)  # less than torch itself
    assert found["error"] == "took more than 0.1 GiB of memory"


def test_nothing_is_left_running(trial, tmp_path):
    trial("Hanging", seconds=1.0)
    running = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read()
            except OSError:
                continue
            if os.fsencode(tmp_path / "convert.json") in words:
                running.append(entry)
    assert running == []
