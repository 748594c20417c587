import pytest

from deepseek.doctor.control_group import cpu_limit, memory_limit_bytes, throttled_share
from deepseek.doctor.machine import Space

GIB = 2**30
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
GROUP = {"/proc/self/cgroup": "0::/jobs/mine\n"}
OLD_GROUP = {"/proc/self/cgroup": "4:memory:/jobs\n2:cpu,cpuacct:/jobs\n"}


def meminfo(total=64, available=60, swap=0, swap_free=0):
    rows = {"MemTotal": total, "MemAvailable": available, "SwapTotal": swap, "SwapFree": swap_free}
    return {"/proc/meminfo": "".join(f"{k}:  {v * 2**20} kB\n" for k, v in rows.items())}


def group(gib):
    return meminfo() | GROUP | {"/sys/fs/cgroup/jobs/mine/memory.max": str(gib * GIB)}


CPUS = {"/sys/devices/system/cpu/online": "0-7"}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("memory.available", {"files": meminfo()}, "ok", "60 GiB of 64 GiB"),
        ("memory.available", {"files": meminfo(64, 1)}, "warning", "1 GiB of 64 GiB"),
        ("memory.limit", {"files": meminfo()}, "ok", "no limit"),
        ("memory.limit", {"files": group(32)}, "note", "limited to 32 GiB"),
        ("memory.limit", {"files": group(2)}, "warning", "limited to 2 GiB of 64 GiB"),
        (
            "memory.limit",
            {"files": group(32) | {"/sys/fs/cgroup/jobs/mine/memory.events": "oom_kill 3\n"}},
            "warning",
            "3 process(es) of this control group were killed",
        ),
        ("memory.shared", {"space": Space(64 * GIB, 60 * GIB)}, "ok", "60 GiB free"),
        (
            "memory.shared",
            {"space": Space(64 * 2**20, 64 * 2**20)},
            "problem",
            "only 64 MiB: loader workers die of a bus error | start the container with --shm-size",
        ),
        (
            "memory.shared",
            {"space": Space(64 * 2**20, 64 * 2**20), "env": POD},
            "problem",
            "emptyDir: {medium: Memory",
        ),
        ("memory.shared", {"space": Space(GIB, GIB), "files": CPUS}, "warning", "1.5 GiB would do"),
        ("memory.shared", {"space": Space(GIB, GIB // 8)}, "warning", "rm /dev/shm/torch_*"),
        ("memory.left_over", {}, None, ""),
        ("memory.left_over", {"files": {"/dev/shm/torch_1_2": ""}}, "note", "1 file(s)"),
        ("memory.swap", {"files": meminfo()}, "ok", "no swap"),
        ("memory.swap", {"files": meminfo(swap=8, swap_free=8)}, "ok", "8 GiB swap"),
        ("memory.swap", {"files": meminfo(swap=8, swap_free=1)}, "warning", "7 GiB of 8 GiB swap"),
        ("memory.overcommit", {"files": {"/proc/sys/vm/overcommit_memory": "0"}}, "ok", "=0"),
        (
            "memory.overcommit",
            {"files": {"/proc/sys/vm/overcommit_memory": "2"}},
            "warning",
            "may fail to start",
        ),
        (
            "memory.huge_pages",
            {"files": {"/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never"}},
            "ok",
            "madvise",
        ),
        (
            "memory.huge_pages",
            {"files": {"/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"}},
            "note",
            "huge pages are off",
        ),
    ],
)
def test_verdict_on_memory(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


def test_missing_shared_memory_is_a_problem(describe, ask):
    machine = describe()
    machine.space = lambda path: None
    assert ask("memory.shared", machine)[0][0] == "problem"


def test_limit_of_a_parent_group_counts(describe):
    files = GROUP | {"/sys/fs/cgroup/jobs/memory.max": "1000"}
    files |= {"/sys/fs/cgroup/jobs/mine/memory.max": "max", "/sys/fs/cgroup/memory.max": "9000"}
    assert memory_limit_bytes(describe(files=files)) == 1000


def test_groups_of_version_1_are_read(describe):
    files = OLD_GROUP | {
        "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "5000",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "/sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "150000",
        "/sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/cpu/jobs/cpu.stat": "nr_periods 8\nnr_throttled 2\n",
    }
    machine = describe(files=files)
    assert memory_limit_bytes(machine) == 5000
    assert cpu_limit(machine) == 1.5
    assert throttled_share(machine) == 0.25


def test_no_control_group_is_no_limit(describe):
    machine = describe()
    assert memory_limit_bytes(machine) is None
    assert cpu_limit(machine) is None
    assert throttled_share(machine) is None
