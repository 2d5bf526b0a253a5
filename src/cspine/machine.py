"""What the machine offers."""

from __future__ import annotations

import os


def count_cpus() -> int:
    """The CPUs that this process may use, 1 and more; not all systems tell them apart from those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
