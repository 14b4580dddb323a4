"""What the machine has; knows no torch, because threads are chosen before that is loaded."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 16


def processors() -> int:
    """How many processors this process may use, 16 at most; a container's quota counts."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, max(int(quota) // int(period), 1))
    except (OSError, ValueError):
        pass  # no quota
    return min(found, MOST)
