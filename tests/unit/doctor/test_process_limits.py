import pytest


def limits(name, soft, hard="unlimited"):
    head = "Limit                     Soft Limit           Hard Limit           Units\n"
    return {"/proc/self/limits": f"{head}{name:<26}{soft:<21}{hard:<21}bytes\n"}


@pytest.mark.parametrize(
    ("name", "files", "verdict", "words"),
    [
        ("limits.files", limits("Max open files", 65536), "ok", "65536 files"),
        ("limits.files", limits("Max open files", "unlimited"), "ok", "any number"),
        ("limits.files", limits("Max open files", 1024, 4096), "warning", "only 1024 files"),
        ("limits.files", {}, None, ""),
        ("limits.processes", limits("Max processes", 96365), "ok", "96365"),
        ("limits.processes", limits("Max processes", "unlimited"), "ok", "any number"),
        ("limits.processes", {"/sys/fs/cgroup/pids.max": "512"}, "warning", "only 512"),
        ("limits.stack", limits("Max stack size", 8388608), "ok", "large enough"),
        ("limits.stack", limits("Max stack size", 1048576), "warning", "limited to 1 MiB"),
        ("limits.address_space", limits("Max address space", "unlimited"), "ok", "unlimited"),
        (
            "limits.address_space",
            limits("Max address space", 16 * 2**30),
            "warning",
            "address space 16 GiB",
        ),
        ("limits.core", limits("Max core file size", 0), "ok", "no core dump"),
        ("limits.core", limits("Max core file size", "unlimited"), "note", "ulimit -c 0"),
    ],
)
def test_verdict_on_limits(expect, name, files, verdict, words):
    expect(name, {"files": files}, verdict, words)
