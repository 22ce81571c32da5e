"""How many threads or processes can work at once."""

from __future__ import annotations

import os


def cores() -> int:
    """Processor cores that this process may use, one at least; fewer than the machine has where it is confined."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
