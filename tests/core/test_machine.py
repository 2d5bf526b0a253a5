"""Holding freed memory: fewer new pages while it lasts, and given back after."""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cspine.core.machine import count_cpus, hold_memory

BLOCK_BYTES, TIMES = 80 * 2**20, 6
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is needed")


def fill_blocks() -> int:
    """How many pages the system had to bring in for blocks that are filled and freed one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        np.ones(BLOCK_BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def find_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE)
    assert found
    return 1024 * int(found.group(1))


@on_glibc
def test_a_freed_block_is_used_again_while_memory_is_held():
    pages = BLOCK_BYTES // resource.getpagesize()
    with hold_memory():
        fill_blocks()
        assert fill_blocks() < pages / 10


@on_glibc
def test_what_was_held_goes_back_to_the_system():
    before = find_resident_bytes()
    with hold_memory():
        fill_blocks()
    assert find_resident_bytes() - before < BLOCK_BYTES / 2


@on_glibc
def test_memory_is_held_until_the_last_who_asked_is_done():
    pages = BLOCK_BYTES // resource.getpagesize()
    with hold_memory():
        with hold_memory():
            fill_blocks()
        assert fill_blocks() < pages / 10


IN_A_THREAD = """
import resource
from threading import Thread
import numpy as np
from cspine.core.machine import hold_memory, share_heap
def fill():
    with hold_memory():
        for _ in range(20):
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            np.ones(80 * 2**20, np.uint8)
pages = []
share_heap()
thread = Thread(target=fill)
thread.start()
thread.join()
print(pages[-1] - pages[1])
"""


@on_glibc
def test_a_thread_holds_memory_where_the_heap_is_shared():
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD], capture_output=True, text=True, check=True)
    assert int(done.stdout) < BLOCK_BYTES // resource.getpagesize()


def test_there_is_a_cpu():
    assert count_cpus() >= 1
