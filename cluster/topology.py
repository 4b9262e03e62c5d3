"""How many machines, and how many ranks on each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """`nodes` machines with `ranks_per_node` ranks each; `has_gpus` says whether a rank owns a GPU or CPU cores."""

    nodes: int
    ranks_per_node: int
    has_gpus: bool

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' if self.nodes > 1 else ''}"
        unit = "GPU" if self.has_gpus else "CPU rank"
        units = f"{self.ranks_per_node} {unit}{'s' if self.ranks_per_node > 1 else ''}"
        return f"{nodes} x {units} = {self.ranks} rank{'s' if self.ranks > 1 else ''}"


def local_gpu_count() -> int:
    """GPUs that this process may use; 0 where there are none."""
    return len(local_gpus())


def local_gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use, found without any driver library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    # Some sandboxes show no more of the driver than its devices.
    found = _NVIDIA_GPUS.iterdir() if _NVIDIA_GPUS.is_dir() else Path("/dev").glob("nvidia[0-9]*")
    return [str(number) for number, _ in enumerate(found)]


def local_core_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
