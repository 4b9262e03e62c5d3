"""How long a rank works in a step before it waits for others."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class OwnTime(Protocol):
    """Call `start` when a step begins and `mark` at each contribution to what others wait for; the last one counts."""

    def start(self) -> None: ...

    def mark(self) -> None: ...

    def seconds(self) -> float:
        """From the start to the last mark. The device must have been waited for since."""
        ...


class HostTime:
    def __init__(self) -> None:
        self._started = self._marked = 0.0

    def start(self) -> None:
        self._started = self._marked = time.perf_counter()

    def mark(self) -> None:
        self._marked = time.perf_counter()

    def seconds(self) -> float:
        return self._marked - self._started


class GpuTime:
    """The host runs ahead of its GPU: what counts is when the GPU comes to the same places."""

    def __init__(self) -> None:
        self._started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._marked = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        self._started.record()
        self._marked.record()

    def mark(self) -> None:
        self._marked.record()

    def seconds(self) -> float:
        return float(self._started.elapsed_time(self._marked)) / 1000


def make_own_time(device: torch.device) -> OwnTime:
    return GpuTime() if device.type == "cuda" else HostTime()
