import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from deepseek.doctor.bandwidth import (
    Bandwidth,
    _environment,
    bus_factor,
    choose_nproc,
    make_row,
    measure_bandwidth,
)
from deepseek.doctor.bandwidth_plot import HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_bandwidth
from deepseek.doctor.bandwidth_table import column_heads, header, row_text
from deepseek.doctor.bandwidth_worker import COLLECTIVES, Ring, expect, make_buffers
from deepseek.doctor.link_speed import LinkSpeed, expected_speed, judge_speed
from deepseek.doctor.machine import Machine
from deepseek.errors import ConfigError, DeepSeekError

FACTS = {"backend": "gloo", "world_size": 4, "num_hosts": 2, "device": "CPU", "torch": "2.14"}
NVLINK = "\tGPU0\tGPU1\nGPU0\t X \tNV18\nGPU1\tNV18\t X \n"
PORT = "/sys/class/infiniband/mlx5_0/ports/1"
IB = {f"{PORT}/state": "4: ACTIVE", f"{PORT}/rate": "400 Gb/sec"}
PCI = "/sys/bus/pci/devices/0000:01:00.0"
CARD = {
    f"{PCI}/vendor": "0x10de",
    f"{PCI}/class": "0x030200",
    f"{PCI}/max_link_speed": "16.0 GT/s PCIe",
    f"{PCI}/current_link_width": "16",
}
ETH = {
    "/sys/class/net/eth0/speed": "25000",
    "/sys/class/net/eth0/flags": "0x1003",
    "/proc/net/route": "h\neth0 00000000 0 0 0 0 0 00000000\n",
}


def measured(collective="all_reduce", size_bytes=2**20, time_us=1000.0, num_wrong=0):
    facts = {"collective": collective, "size_bytes": size_bytes, "time_us": time_us}
    return make_row({**facts, "num_wrong": num_wrong}, 4)


@pytest.mark.parametrize(
    ("collective", "factor"),
    [
        ("all_reduce", 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("broadcast", 1),
        ("send_recv", 1),
    ],
)
def test_bus_bandwidth_has_the_factors_of_nccl_tests(collective, factor):
    assert bus_factor(collective, 4) == factor
    row = measured(collective, size_bytes=4_000_000, time_us=1000.0)
    assert row.algorithm_gbs == pytest.approx(4.0)
    assert row.bus_gbs == pytest.approx(4.0 * factor)


def test_expected_results_are_those_of_the_definition():
    rings = [Ring(rank, 3, "cpu") for rank in range(3)]
    given = [make_buffers("reduce_scatter", ring, 30)[0] for ring in rings]
    total = given[0] + given[1] + given[2]
    for ring in rings:
        assert expect("all_reduce", ring, 30).equal(total)
        part = total[ring.rank * 10 : ring.rank * 10 + 10]
        assert expect("reduce_scatter", ring, 30).equal(part)
        assert expect("broadcast", ring, 30).equal(given[0])
        assert expect("send_recv", ring, 30).equal(given[ring.rank - 1])
    parts = [make_buffers("all_gather", ring, 30)[0] for ring in rings]
    assert expect("all_gather", rings[0], 30).tolist() == [x for p in parts for x in p.tolist()]


def test_one_process_per_card_and_two_without(describe):
    assert choose_nproc(describe(), None) == 2
    assert choose_nproc(describe(files={"/dev/nvidia0": ""}), None) == 2
    assert choose_nproc(describe(files={f"/dev/nvidia{i}": "" for i in range(8)}), None) == 8
    assert choose_nproc(describe(), 3) == 3


@pytest.mark.parametrize(
    ("visible", "nproc"),
    [("0,1", 2), ("4,5,6", 3), ("0,1,2,-1,3", 3), ("0,1,2,,3", 3), ("0,1,2,8,3", 3), ("", 2),
     ("-1", 2), ("0,1,2,0", 2), ("GPU-a,GPU-b,GPU-c", 3)],
)  # fmt: skip
def test_cards_that_are_hidden_get_no_process(describe, visible, nproc):
    files = {f"/dev/nvidia{i}": "" for i in range(8)}
    machine = describe(files=files, env={"CUDA_VISIBLE_DEVICES": visible})
    assert choose_nproc(machine, None) == nproc


@pytest.mark.parametrize(
    ("env", "nproc", "words"),
    [
        ({}, 1, "nobody to talk to"),
        ({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a"}, 2, "inside a job of 4"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a"}, None, "WORLD_SIZE=1"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, None, "MASTER_ADDR=''"),
    ],
)
def test_processes_that_cannot_talk_are_refused(describe, env, nproc, words):
    with pytest.raises(ConfigError, match=words):
        choose_nproc(describe(env=env), nproc)


def test_two_processes_measure_all_collectives_rightly():
    rows = []
    found = measure_bandwidth([1024, 4098], 2, on_row=lambda _, row: rows.append(row))
    assert found is not None
    assert found.facts["backend"] in ("gloo", "nccl")
    assert found.facts["world_size"] == 2
    assert found.rows == rows
    assert [row.collective for row in rows] == [name for name in COLLECTIVES for _ in range(2)]
    assert all(row.num_wrong == 0 and row.time_us > 0 for row in rows)
    # 4098 bytes are no whole number of float32 per rank
    assert [row.size_bytes for row in rows[:2]] == [1024, 4096]


@pytest.mark.parametrize("module", ["torch", "statistics"])
def test_a_file_of_the_folder_is_not_taken_for_a_library(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise SystemExit(f'{__file__} was imported')")
    code = f"import importlib.util as u; print(u.find_spec({module!r}).origin)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words,
        env=_environment(os.environ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) not in done.stdout


def test_processes_that_fail_are_told_with_their_last_words(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libnccl is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DeepSeekError, match=r"ended with code 1:\n.*libnccl is missing"):
        measure_bandwidth([1024], 2, Machine())


def test_table_has_the_columns_of_nccl_tests():
    found = Bandwidth(FACTS, [measured()])
    assert header(found) == "gloo on CPU, 4 processes, 2 machines, torch 2.14, float32"
    heads = column_heads("all_reduce").splitlines()
    row = row_text(found.rows[0])
    assert heads[2].split() == ["size", "time", "algbw", "busbw", "#wrong"]
    assert row.split() == ["1", "MiB", "1000.0", "1.049", "1.573", "0"]
    assert len(heads[2]) == len(row)


def test_plot_has_a_line_and_a_dot_for_each_measurement_inside_its_frame(tmp_path):
    rows = [
        measured(name, 2**k, 50 + 2**k / 1000) for name in COLLECTIVES for k in range(10, 27, 4)
    ]
    path = tmp_path / "plot.svg"
    draw_bandwidth(Bandwidth(FACTS, rows), path)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f"{space}circle")
    assert len(dots) == len(rows)
    assert all(LEFT <= float(dot.get("cx", 0)) <= WIDTH - RIGHT for dot in dots)
    assert all(TOP <= float(dot.get("cy", 0)) <= HEIGHT for dot in dots)
    names = {entry.text for entry in root.findall(f"{space}text")}
    assert {"all-reduce", "send-recv", "message size", "64 MiB"} <= names
    assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")


def test_plot_of_one_size_is_drawn():
    assert draw_bandwidth(Bandwidth(FACTS, [measured()])).count("<circle") == 1


@pytest.mark.parametrize(
    ("facts", "job", "gbs"),
    [
        ({"commands": {"nvidia-smi topo": NVLINK}}, ("nccl", 1, "NVIDIA H100 80GB HBM3"), 450.0),
        ({"commands": {"nvidia-smi topo": NVLINK}}, ("nccl", 1, "NVIDIA B200"), 900.0),
        ({"files": CARD}, ("nccl", 1, "NVIDIA L40"), 25.6),
        ({"files": IB}, ("nccl", 2, "NVIDIA H100"), 50.0),
        ({"files": IB | ETH, "env": {"NCCL_IB_DISABLE": "1"}}, ("nccl", 2, "x"), 3.125),
        ({"files": IB | ETH}, ("gloo", 2, "CPU"), 3.125),
        ({"files": IB}, ("gloo", 1, "CPU"), None),
        ({}, ("nccl", 2, "x"), None),
    ],
)
def test_speed_of_the_link_is_known_from_the_hardware(describe, facts, job, gbs):
    backend, num_hosts, device = job
    link = expected_speed(describe(**facts), backend=backend, num_hosts=num_hosts, device=device)
    assert (link and link.gbs) == gbs


def test_bandwidth_far_below_the_link_is_told_for_large_messages_only():
    link = LinkSpeed(50.0, "1 RDMA port(s)")
    advice = judge_speed(10.0, link, largest_bytes=2**26)
    assert advice is not None
    assert advice.startswith("all-reduce reaches 10 GB/s of the 50 GB/s of 1 RDMA port(s) (20%)")
    assert judge_speed(40.0, link, largest_bytes=2**26) is None
    assert judge_speed(1.0, link, largest_bytes=2**20) is None
    assert judge_speed(1.0, None, largest_bytes=2**26) is None


def test_measurements_are_json():
    found = Bandwidth(FACTS, [measured(num_wrong=2), measured(time_us=500.0)])
    assert json.loads(json.dumps(found.as_json()))["rows"][0]["num_wrong"] == 2
    assert found.num_wrong == 2
    assert found.peak_gbs == found.rows[1].bus_gbs
