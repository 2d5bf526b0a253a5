"""What the machine offers, and how its memory is used."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path

# Names of malloc.h; the other values are the largest that glibc's own adjustment arrives at.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_HOLDING = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
_AS_USUAL = ((_M_MMAP_MAX, 65536), (_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**26))

_lock = threading.Lock()
_holders = 0


def count_cpus() -> int:
    """The CPUs that this process may use, 1 and more; not all systems tell them apart from those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def hold_memory() -> Iterator[None]:
    """While this lasts, keep what is freed for the next allocation; what is left over goes back to the system after.

    A step of a network on the CPU allocates and frees hundreds of megabytes. By itself glibc hands every block of more
    than 32 MB back at once, and the system then clears each page of the next one: up to half of its time.
    The program takes no more memory than a step needs, but keeps it between steps. May be nested, and used by several
    threads. Nothing happens on systems without glibc.
    """
    global _holders
    with _lock:
        _holders += 1
        if _holders == 1:
            _adjust(_HOLDING)
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _adjust(_AS_USUAL)
                if (libc := _find_glibc()) is not None:
                    libc.malloc_trim(0)


def share_heap() -> None:
    """Let threads allocate from the heap of the program, where `hold_memory` can hold.

    By itself glibc gives each thread a heap of its own, which takes no block of more than 64 MB and goes back to the
    system whenever it is empty: a network that runs in a thread would get cleared pages in every step. Threads that
    have such a heap keep it, so this is called before others are started. Nothing happens on systems without glibc.
    """
    _adjust(((_M_ARENA_MAX, 1),))


def _adjust(options: tuple[tuple[int, int], ...]) -> None:
    if (libc := _find_glibc()) is not None:
        for name, value in options:
            libc.mallopt(name, value)


@functools.cache
def _find_glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def read_memory(field: str) -> int | None:
    """Bytes of this process by a field of Linux's /proc/self/status; None where the system does not tell.

    Args:
        field: "VmHWM" is the greatest resident set so far, pages of mapped files included; it knows nothing of the
            process that started this one, as getrusage does. "RssAnon" is what no file stands behind, now.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
