import pytest

from deepseek.doctor.machine import Output
from deepseek.doctor.nvidia_smi import parse_topology

PCI = "/sys/bus/pci/devices/0000:01:00.0"
BUS = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x030200\n"}
DEV = {"/dev/nvidia0": "", "/dev/nvidiactl": ""}
OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"
DOCKER = {"/.dockerenv": ""}
HEALTHY = "0, NVIDIA H100, 580.95.05, Enabled, 0, No, No, 41, 4, 81559, Disabled, Not Active"


def smi(**changes):
    """Answer of nvidia-smi for one card, with some columns changed by their place."""
    words = HEALTHY.split(", ")
    for place, word in changes.items():
        words[int(place[1:])] = word
    return {"nvidia-smi --query-gpu": ", ".join(words)}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("nvidia.driver", {}, None, ""),
        ("nvidia.driver", {"files": {"/proc/driver/nvidia/version": NEW}}, "ok", "580.95.05"),
        (
            "nvidia.driver",
            {"files": {"/proc/driver/nvidia/version": OLD}},
            "problem",
            "driver 550.54.14 is too old for the CUDA 13.0 of torch: it wants 580",
        ),
        (
            "nvidia.driver",
            {"files": {"/proc/driver/nvidia/version": OLD}, "torch": {"cuda": "12.8"}},
            "ok",
            "550.54.14, torch brings CUDA 12.8",
        ),
        ("nvidia.driver", {"files": BUS}, "problem", "no driver is loaded"),
        ("nvidia.driver", {"commands": smi()}, "ok", "580.95.05"),
        (
            "nvidia.driver",
            {"commands": {"nvidia-smi": Output(18, "Driver/library version mismatch")}},
            "problem",
            "restart the machine",
        ),
        ("nvidia.devices", {}, "ok", "no NVIDIA card here"),
        ("nvidia.devices", {"files": BUS | DEV}, "ok", "1 card(s) in /dev"),
        ("nvidia.devices", {"files": BUS}, "problem", "1 card(s) on the bus, 0 in /dev"),
        (
            "nvidia.devices",
            {"files": BUS | DEV | {"/dev/nvidia1": ""}, "commands": smi()},
            "problem",
            "1 of 2 cards answer",
        ),
        ("nvidia.container", {"files": BUS}, None, ""),
        ("nvidia.container", {"files": BUS | DEV | DOCKER}, "ok", "was given cards"),
        ("nvidia.container", {"files": BUS | DOCKER}, "problem", "NVIDIA container toolkit"),
        (
            "nvidia.container",
            {"files": BUS | DOCKER, "env": {"NVIDIA_VISIBLE_DEVICES": "void"}},
            "problem",
            "NVIDIA_VISIBLE_DEVICES=void hides",
        ),
        ("nvidia.visible_devices", {}, None, ""),
        (
            "nvidia.visible_devices",
            {"files": DEV, "env": {"CUDA_VISIBLE_DEVICES": "0"}},
            "ok",
            "CUDA_VISIBLE_DEVICES=0",
        ),
        (
            "nvidia.visible_devices",
            {"files": DEV, "env": {"CUDA_VISIBLE_DEVICES": "0,3"}},
            "problem",
            "there is no card 3 among 1",
        ),
        (
            "nvidia.visible_devices",
            {"files": DEV, "env": {"CUDA_VISIBLE_DEVICES": "0,0"}},
            "problem",
            "names a card twice",
        ),
        (
            "nvidia.visible_devices",
            {"files": DEV, "env": {"CUDA_VISIBLE_DEVICES": ""}},
            "problem",
            "hides every card",
        ),
        (
            "nvidia.visible_devices",
            {"files": DEV, "env": {"CUDA_VISIBLE_DEVICES": "0,"}},
            "warning",
            "empty entry",
        ),
        ("nvidia.health", {"commands": smi()}, "ok", "without memory errors"),
        ("nvidia.health", {"commands": smi(_4="3")}, "problem", "3 uncorrected memory errors"),
        ("nvidia.health", {"commands": smi(_5="Yes")}, "problem", "row remapping pending"),
        ("nvidia.health", {"commands": smi(_7="91")}, "warning", "91 C"),
        ("nvidia.health", {"commands": smi(_11="Active")}, "warning", "slowed down"),
        ("nvidia.memory", {"commands": smi()}, None, ""),
        ("nvidia.memory", {"commands": smi(_8="60000")}, "warning", "60000 of 81559 MiB"),
        ("nvidia.persistence", {"commands": smi()}, "ok", "is on"),
        ("nvidia.persistence", {"commands": smi(_3="Disabled")}, "note", "nvidia-smi -pm 1"),
        ("nvidia.mig", {"commands": smi()}, None, ""),
        ("nvidia.mig", {"commands": smi(_10="Enabled")}, "warning", "MIG"),
        ("nvidia.xid", {"files": DEV, "commands": {"dmesg": "all is well"}}, "ok", "no Xid"),
        (
            "nvidia.xid",
            {"files": DEV, "commands": {"dmesg": "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen"}},
            "problem",
            "1 x Xid 79: the card has fallen off the bus",
        ),
        (
            "nvidia.xid",
            {"files": DEV, "commands": {"dmesg": "NVRM: Xid (PCI:0000:01:00): 31, pid=7"}},
            "warning",
            "Xid 31",
        ),
        ("nvidia.xid", {"files": DEV, "commands": {"dmesg": Output(1)}}, "note", "sudo dmesg"),
    ],
)
def test_verdict_on_driver_and_cards(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


NVLINK = """\
\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\t0-51\t0\t\tN/A
GPU1\tNV18\t X \tSYS\t52-103\t1\t\tN/A
NIC0\tPIX\tSYS\t X

Legend:
  X    = Self
NIC Legend:
  NIC0: mlx5_0
"""
SYSTEM = NVLINK.replace("NV18", "SYS").replace("PIX", "NODE")
ALONE = "\tGPU0\tCPU Affinity\nGPU0\t X \t0-15\n"


def test_topology_is_read_from_the_matrix():
    topology = parse_topology(NVLINK)
    assert topology is not None
    assert topology.gpus == ("GPU0", "GPU1")
    assert topology.links == {("GPU0", "GPU1"): "NV18", ("GPU1", "GPU0"): "NV18"}
    assert topology.nics == {"NIC0": ("PIX", "SYS")}
    assert parse_topology("no devices were found") is None


@pytest.mark.parametrize(
    ("name", "text", "verdict", "words"),
    [
        ("nvidia.topology", NVLINK, "ok", "all over NVLink (18 per pair at least)"),
        ("nvidia.topology", SYSTEM, "warning", "1 pair(s) SYS (the link between CPU sockets"),
        ("nvidia.topology", NVLINK.replace("NV18", "PHB"), "note", "PHB"),
        ("nvidia.topology", ALONE, None, ""),
        ("nvidia.network_distance", NVLINK, "note", "GPU1: the nearest network card"),
        ("nvidia.network_distance", NVLINK.replace("SYS", "PXB"), "ok", "every card"),
    ],
)
def test_verdict_on_the_topology(expect, name, text, verdict, words):
    expect(name, {"commands": {"nvidia-smi topo -m": text}}, verdict, words)


EIGHT = {f"/dev/nvidia{n}": "" for n in range(8)}
JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("name", "env", "verdict", "words"),
    [
        ("nvidia.devices", JOB, "ok", "8 card(s) in /dev"),
        ("nvidia.devices", JOB | {"SLURM_GPUS_ON_NODE": "8"}, "ok", "8 card(s) in /dev"),
        (
            "nvidia.devices",
            {**JOB, "SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"},
            "problem",
            "1 of 2 cards answer",
        ),
        ("nvidia.devices", {}, "problem", "1 of 8 cards answer"),
        # without ConstrainDevices the number is the machine's
        ("nvidia.visible_devices", JOB | {"CUDA_VISIBLE_DEVICES": "5"}, "ok", "=5"),
        ("slurm.tasks", JOB, "ok", "1 card(s)"),
        ("torch.cuda", JOB, "ok", "torch sees 1 of 1 card(s)"),
    ],
)
def test_cards_of_other_jobs_are_no_problem(expect, name, env, verdict, words):
    seen = {"device_count": 1, "devices": ["H100"]}
    expect(name, {"files": EIGHT, "env": env, "commands": smi(), "torch": seen}, verdict, words)


def test_a_job_that_asked_for_no_card_is_told(expect):
    nothing = {"nvidia-smi": Output(6, "No devices were found")}
    facts = {"files": EIGHT, "env": {"SLURM_JOB_ID": "7"}, "commands": nothing}
    expect("slurm.tasks", facts, "warning", "the job asked for no card")
    expect("nvidia.devices", facts, "ok", "8 card(s) in /dev")
    expect("torch.cuda", facts, None)
