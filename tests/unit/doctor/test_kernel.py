import pytest

TWO = {"/dev/nvidia0": "", "/dev/nvidia1": ""}
HOSTS = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
SMALL = {"/proc/sys/net/core/somaxconn": "128"}


@pytest.mark.parametrize(
    ("name", "facts", "verdict", "words"),
    [
        ("kernel.parameters", {"files": SMALL}, "ok", "large enough"),
        (
            "kernel.parameters",
            {"files": SMALL, "env": HOSTS},
            "warning",
            "ranks that connect at once are refused | sudo sysctl -w net.core.somaxconn=1024",
        ),
        (
            "kernel.parameters",
            {"files": {"/proc/sys/vm/max_map_count": "1000"}},
            "warning",
            "vm.max_map_count=1000",
        ),
        ("kernel.iommu", {}, None, ""),
        ("kernel.iommu", {"files": TWO | {"/proc/cmdline": "quiet"}}, "ok", "off"),
        (
            "kernel.iommu",
            {"files": TWO | {"/proc/cmdline": "intel_iommu=on quiet"}},
            "warning",
            "iommu=pt",
        ),
        ("kernel.iommu", {"files": TWO | {"/proc/cmdline": "amd_iommu=on iommu=pt"}}, "ok", "pass"),
        ("kernel.tracing", {}, None, ""),
        (
            "kernel.tracing",
            {"files": {"/proc/sys/kernel/yama/ptrace_scope": "1"}},
            "note",
            "py-spy needs root",
        ),
    ],
)
def test_verdict_on_the_kernel(expect, name, facts, verdict, words):
    expect(name, facts, verdict, words)
