"""The memory of a job, as the kernel accounts for it."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def out_of_memory_kills() -> int:
    """How many processes of this control group the kernel has ended so far for lack of memory; 0 where it is silent."""
    for path in _counters():
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _counters() -> list[Path]:
    """Where the count may be (cgroups(7)): in our own group, or, in a container that hides its name, at the root."""
    counters = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":  # version 1
            counters += [_ROOT / "memory" / name / "memory.oom_control" for name in (group.strip("/"), "")]
        elif not controllers:  # version 2
            counters += [_ROOT / name / "memory.events" for name in (group.strip("/"), "")]
    return counters
