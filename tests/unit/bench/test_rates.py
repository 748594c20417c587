import pytest
import torch

from deepseek.bench.arithmetic import best_time, measure_matmul, measure_memory
from deepseek.bench.input_rates import measure_decoding, measure_disk

CPU = torch.device("cpu")


def test_the_shortest_call_counts_and_the_first_does_not():
    calls = []
    best_time(lambda: calls.append(0), CPU, seconds=0.0)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_time_of_a_call_ends_when_the_device_has_computed(monkeypatch, kind):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    best_time(lambda: None, torch.device(kind), seconds=0.0)
    assert waits == [torch.device(kind)] * 2


def test_the_rate_of_a_product_is_that_of_its_size():
    rate = measure_matmul("fp32", CPU, seconds=0.05)
    size = int(rate.remark.split(" x ")[0])
    a = torch.randn(size, size)
    seconds = best_time(lambda: a @ a, CPU, seconds=0.05)
    assert rate.unit == "TFLOP/s"
    assert rate.value == pytest.approx(2 * size**3 / seconds / 1e12, rel=0.95)


def test_memory_counts_what_is_read_and_what_is_written():
    rate = measure_memory(CPU, seconds=0.0)
    assert rate.value > 0
    assert "128 MiB" in rate.remark


def test_the_disk_is_left_as_it_was(tmp_path):
    write, read = measure_disk(tmp_path, free_bytes=2**40, seconds=0.05)
    assert write.value > 0
    assert read.value > 0
    assert not list(tmp_path.iterdir())


def test_a_disk_with_little_room_gets_a_small_file(tmp_path):
    write, _ = measure_disk(tmp_path, free_bytes=2**20, seconds=5.0)
    assert write.remark.startswith("4 MiB in")


def test_pictures_are_decoded(tmp_path):
    rate = measure_decoding(tmp_path, seconds=0.05)
    assert rate.value > 0
    assert rate.unit == "images/s"
