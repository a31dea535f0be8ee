"""Peak memory of a process; without torch, whose code alone would fill some."""

import resource
from pathlib import Path


def peak_gib() -> float:
    """Peak memory of this process so far."""
    status = Path("/proc/self/status")  # on Linux ru_maxrss begins with the peak of the parent process
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return used / 2**30
