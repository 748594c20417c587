"""Freed memory is kept for the next batch, unless somebody else set malloc up."""

import platform
import subprocess
import sys

import pytest

from deepseek.datasets.host_memory import keep_freed_memory, release_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run_alone(code: str) -> None:
    """Run it in a process whose memory no other test has cut up."""
    imports = "import os, resource, torch\nfrom deepseek.datasets.host_memory import *\n"
    subprocess.run([sys.executable, "-c", imports + code], check=True)


@needs_glibc
def test_the_next_batch_faults_no_page_in():
    run_alone(
        "assert keep_freed_memory()\n"
        "count_faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "make_batch = lambda: torch.ones(20 << 20, dtype=torch.uint8)\n"
        "for _ in range(3): make_batch()\n"
        "before = count_faults()\n"
        "for _ in range(10): make_batch()\n"
        "faults, pages = count_faults() - before, 10 * (20 << 20) / 4096\n"
        "assert faults < pages / 10, (faults, pages)\n"
    )


@needs_glibc
def test_memory_is_given_back_when_asked():
    run_alone(
        "page = os.sysconf('SC_PAGE_SIZE')\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * page\n"
        "keep_freed_memory()\n"
        "held = [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(10)]\n"
        "full = rss(); held.clear(); kept = rss(); release_freed_memory()\n"
        "assert full - kept < 100 << 20, (full, kept)\n"
        "assert full - rss() > 150 << 20, (full, rss())\n"
    )


def test_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory.__wrapped__()
    release_freed_memory()
