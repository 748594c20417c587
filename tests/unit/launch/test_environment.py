import os

import pytest

from deepseek.launch.environment import (
    count_cores,
    count_gpus,
    recorder_defaults,
    thread_default,
)

CORES = len(os.sched_getaffinity(0))


def test_processes_share_the_cores_and_have_one_at_least():
    cores = count_cores()
    for nproc in (1, 2, 1000):
        threads = int(thread_default(nproc)["OMP_NUM_THREADS"])
        assert threads == max(1, cores // nproc)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", CORES),
        ("100000 100000", 1),
        ("150000 100000", min(2, CORES)),
        ("10000 100000", 1),
        ("", CORES),
    ],
)
def test_quota_of_a_container_counts(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    assert count_cores(tmp_path / "cpu.max") == cores


def test_without_cgroup_affinity_counts(tmp_path):
    assert count_cores(tmp_path / "cpu.max") == CORES


def test_gpus_are_devices_with_a_number(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 3


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("0,1", 2), ("0, 2 ,-1,3", 2), ("GPU-a,GPU-b", 2)]
)
def test_gpus_are_those_that_cuda_sees(visible, count, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(tmp_path) == count


@pytest.mark.parametrize(("visible", "count"), [("0,1,2", 2), ("1,1", 0), ("2,0", 0), ("GPU-a", 1)])
def test_gpus_that_are_not_there_are_not_counted(visible, count, tmp_path, monkeypatch):
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(tmp_path) == count


def test_flight_recorder_writes_into_the_launch_folder(tmp_path):
    defaults = recorder_defaults(tmp_path)
    assert defaults["TORCH_FR_DUMP_TEMP_FILE"].startswith(str(tmp_path))
    assert int(defaults["TORCH_FR_BUFFER_SIZE"]) > 0
