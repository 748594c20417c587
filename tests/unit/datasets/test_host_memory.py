"""Freed memory is kept for the next batch, unless somebody else set malloc up."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from deepseek.datasets.host_memory import keep_freed_memory, release_freed_memory

MIB = 2**20
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def count_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@needs_glibc
def test_the_next_batch_faults_no_page_in():
    assert keep_freed_memory()
    for _ in range(3):
        torch.ones(20 * MIB, dtype=torch.uint8)
    before = count_faults()
    for _ in range(10):
        torch.ones(20 * MIB, dtype=torch.uint8)
    assert count_faults() - before < 10 * 20 * MIB / 4096 / 10


@needs_glibc
def test_memory_is_given_back_when_asked():
    code = (
        "import torch, os\n"
        "from deepseek.datasets.host_memory import *\n"
        "page = os.sysconf('SC_PAGE_SIZE')\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * page\n"
        "keep_freed_memory()\n"
        "held = [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(10)]\n"
        "full = rss(); held.clear(); kept = rss(); release_freed_memory()\n"
        "assert full - kept < 100 << 20, (full, kept)\n"
        "assert full - rss() > 150 << 20, (full, rss())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory.__wrapped__()
    release_freed_memory()
