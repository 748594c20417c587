import pytest

ROOT = "/sys/class/infiniband"
LIMITED = {"/proc/self/limits": "Max locked memory         8388608   8388608   bytes\n"}
FREE = {"/proc/self/limits": "Max locked memory         unlimited   unlimited   bytes\n"}


def port(device="mlx5_0", state="4: ACTIVE", rate="400 Gb/sec (4X NDR)"):
    folder = f"{ROOT}/{device}/ports/1"
    return {f"{folder}/state": state, f"{folder}/rate": rate, f"{folder}/link_layer": "InfiniBand"}


@pytest.mark.parametrize(
    ("name", "files", "verdict", "words"),
    [
        ("rdma.ports", {}, "ok", "TCP is used"),
        ("rdma.ports", port() | port("mlx5_1"), "ok", "2 of 2 RDMA port(s) up, 800 Gbit/s"),
        ("rdma.ports", port(state="1: DOWN"), "problem", "no RDMA port is up: mlx5_0:1 DOWN"),
        ("rdma.ports", port() | port("mlx5_1", "2: INIT"), "warning", "subnet manager"),
        ("rdma.ports", port() | port("mlx5_1", rate="100 Gb/sec"), "note", "different rates"),
        ("rdma.devices", port() | {"/dev/infiniband/uverbs0": ""}, "ok", "1 device file"),
        ("rdma.devices", port(), "problem", "--device=/dev/infiniband"),
        ("rdma.devices", {}, None, ""),
        ("rdma.memlock", LIMITED, "ok", "not needed"),
        ("rdma.memlock", LIMITED | port(), "problem", "limited to 8 MiB"),
        ("rdma.memlock", FREE | port(), "ok", "unlimited"),
        ("rdma.gpudirect", port() | {"/dev/nvidia0": ""}, "note", "modprobe nvidia-peermem"),
        (
            "rdma.gpudirect",
            port() | {"/dev/nvidia0": "", "/sys/module/nvidia_peermem/version": "1"},
            "ok",
            "is loaded",
        ),
        ("rdma.gpudirect", port(), None, ""),
    ],
)
def test_verdict_on_rdma(expect, name, files, verdict, words):
    expect(name, {"files": files}, verdict, words)
