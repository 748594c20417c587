from pathlib import Path

import pytest

from deepseek.doctor.disk import mount_of
from deepseek.doctor.machine import Space

GIB = 2**30
ROOM = Space(500 * GIB, 100 * GIB, 10**6, 10**5)


def mounts(kind="ext4", options="rw,relatime", place="/"):
    return {"/proc/self/mounts": f"dev {place} {kind} {options} 0 0\n"}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("disk.runs", {"files": mounts()}, "ok", "100 GiB free"),
        ("disk.runs", {"files": mounts("nfs4")}, "note", "a network file system (nfs4)"),
        ("disk.runs", {"files": mounts(options="ro")}, "problem", "mounted read-only"),
        (
            "disk.runs",
            {"files": mounts("overlay") | {"/.dockerenv": ""}},
            "note",
            "goes away with the container",
        ),
        ("disk.runs", {"space": Space(9 * GIB, GIB // 2)}, "problem", "only 512 MiB free"),
        ("disk.runs", {"space": Space(9 * GIB, 5 * GIB)}, "warning", "not enough for the check"),
        ("disk.runs", {"space": Space(90 * GIB, 50 * GIB, 100, 0)}, "problem", "0 inodes left"),
        ("disk.temporary", {"files": mounts()}, "ok", "free in /tmp"),
        ("disk.temporary", {"files": mounts(options="rw,noexec")}, "warning", "torch.compile"),
        ("disk.temporary", {"space": Space(9 * GIB, GIB)}, "warning", "only 1 GiB free in /tmp"),
        ("disk.temporary", {"env": {"TMPDIR": "/scratch"}}, "ok", "free in /scratch"),
        ("compile.compiler", {"env": {"PATH": "/nowhere"}}, "note", "no g++"),
    ],
)
def test_verdict_on_disks(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


@pytest.mark.parametrize("name", ["disk.runs", "disk.temporary"])
def test_folder_that_is_not_there_is_a_problem(describe, ask, name):
    machine = describe()
    machine.space = lambda path: None
    assert ask(name, machine)[0][0] == "problem"


def test_compiler_is_found_on_the_path(expect, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    expect("compile.compiler", {"env": {"PATH": str(tmp_path)}}, "ok", "g++ is there")


def test_nearest_mount_is_the_one_that_counts(describe):
    text = "a / ext4 rw 0 0\nb /data nfs4 rw 0 0\nc /data/my\\040runs xfs ro 0 0\n"
    machine = describe(files={"/proc/self/mounts": text})
    assert mount_of(machine, Path("/data/x"))[:2] == ("/data", "nfs4")
    assert mount_of(machine, Path("/data/my runs/1"))[:2] == ("/data/my runs", "xfs")
    assert mount_of(machine, Path("/database"))[:2] == ("/", "ext4")
