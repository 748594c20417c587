import pytest

from deepseek.doctor.processor import count_listed, usable_cpus

CPUS = {"/sys/devices/system/cpu/online": "0-15"}
QUOTA = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "400000 100000"}
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
DRIVER = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
STAT = "/sys/fs/cgroup/cpu.stat"
NODES = {"/sys/devices/system/node/node0/cpulist": "", "/sys/devices/system/node/node1/cpulist": ""}


def flags(words):
    return {"/proc/cpuinfo": f"processor\t: 0\nflags\t\t: {words}\n"}


def threads(number):
    return {"files": CPUS, "env": {"OMP_NUM_THREADS": number}}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("cpu.count", {"files": CPUS}, "ok", "16 of 16 CPUs"),
        (
            "cpu.count",
            {"files": CPUS | QUOTA},
            "warning",
            "the quota is 4 CPUs, torch would start 16 threads | export OMP_NUM_THREADS=4",
        ),
        ("cpu.count", {"files": CPUS | QUOTA, "env": {"OMP_NUM_THREADS": "4"}}, "ok", "by quota"),
        (
            "cpu.count",
            {"files": CPUS | {"/proc/self/status": "Cpus_allowed_list:\t3\n"}},
            "warning",
            "one CPU of 16 | Slurm: --cpus-per-task",
        ),
        ("cpu.throttled", {"files": QUOTA | {STAT: "nr_periods 9\nnr_throttled 0\n"}}, None, ""),
        (
            "cpu.throttled",
            {"files": QUOTA | {STAT: "nr_periods 10\nnr_throttled 5\n"}},
            "warning",
            "in 50% of its periods",
        ),
        ("cpu.bf16", {"files": flags("avx2 avx512_bf16 amx_bf16")}, "ok", "fast: amx_bf16"),
        ("cpu.bf16", {"files": flags("avx2 avx512_bf16")}, "ok", "in hardware"),
        ("cpu.bf16", {"files": flags("sse avx2")}, "note", "slower than fp32"),
        ("cpu.bf16", {"files": flags("sse")}, "warning", "no AVX2"),
        ("cpu.bf16", {"files": {"/proc/cpuinfo": "Features\t: asimd bf16\n"}}, "ok", "bf16"),
        ("cpu.governor", {}, None, ""),
        ("cpu.governor", {"files": {GOVERNOR: "powersave", DRIVER: "intel_pstate"}}, "ok", "power"),
        (
            "cpu.governor",
            {"files": {GOVERNOR: "powersave", DRIVER: "acpi-cpufreq"}},
            "warning",
            "the lowest clock",
        ),
        ("cpu.threads", {"files": CPUS}, "ok", "is not set; 16"),
        ("cpu.threads", threads("8"), "ok", "OMP_NUM_THREADS=8 on 16"),
        ("cpu.threads", threads("64"), "warning", "wait for each other"),
        ("cpu.threads", threads("all"), "problem", "is no number"),
        ("cpu.threads", threads("1"), "note", "leaves 15 of 16 CPUs idle"),
        ("cpu.numa", {}, "ok", "one NUMA node"),
        ("cpu.numa", {"files": NODES}, "note", "2 NUMA nodes | torchrun --numa-binding"),
        ("cpu.load", {"files": CPUS | {"/proc/loadavg": "2.5 1 1 1/9 7"}}, "ok", "load 2.5"),
        ("cpu.load", {"files": CPUS | {"/proc/loadavg": "99 1 1 1/9 7"}}, "warning", "others use"),
    ],
)
def test_verdict_on_processors(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)


def test_lists_of_cpus_are_counted_and_a_quota_bounds_them(describe):
    assert count_listed("0-3,8,10-11") == 7
    assert count_listed("") == 0
    assert usable_cpus(describe()) == 1
    assert usable_cpus(describe(files=CPUS | QUOTA)) == 4
