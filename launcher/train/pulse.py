"""What each rank lets its agent see without being asked: a few numbers in memory that both have mapped.

The memory is no file on a disk, which may be full or slow. Each number is one aligned word: a reader never sees half.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from statistics import median
from typing import Any

BEAT_SECONDS = 0.5
RECENT_STEPS = 32
_PID, _RANK, _PHASE, _STEP, _PROGRESS, _BEATS, _COLLECTIVES, _RECENT = range(8)
_WORDS = _RECENT + RECENT_STEPS
_WORD_BYTES = 8


class Phase(IntEnum):
    STARTING = 0
    STEPPING = 1
    EVALUATING = 2
    SAVING = 3
    FIRST_STEP = 4  # of this start, with nothing in it but the step


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A living rank at one moment. `state` is the letter that proc(5) gives for its process.

    progress and beats: any change means that the main thread, or a thread that does nothing else, has run.
    collectives: how many this rank has joined.
    """

    rank: int
    pid: int
    state: str
    phase: Phase
    step: int
    progress: int
    beats: int
    collectives: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sight:
        return cls(**{**value, "phase": Phase(value["phase"])})

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")


class Pulses:
    """The agent's side: the pulses of all ranks of this node."""

    def __init__(self, ranks: int) -> None:
        self._descriptor = os.memfd_create("pulses")
        self._size = _WORDS * _WORD_BYTES
        os.posix_fallocate(self._descriptor, 0, ranks * self._size)
        self._memory = mmap.mmap(self._descriptor, ranks * self._size)
        words = memoryview(self._memory).cast("q")
        self._slots = [words[index * _WORDS : (index + 1) * _WORDS] for index in range(ranks)]

    @property
    def path(self) -> str:
        """Where a process of the same user can open the memory, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def clear(self) -> None:
        """Forget the ranks that were; call it when none of them lives."""
        for slot in self._slots:
            for index in range(_WORDS):
                slot[index] = 0

    def read(self) -> list[Sight]:
        """The ranks that have begun and not ended."""
        sights = (self._sight(slot) for slot in self._slots if slot[_PID])
        return [sight for sight in sights if sight.state not in ("", "Z", "X")]

    def own_seconds(self) -> dict[int, float]:
        """By rank: the median of its own work in its recent steps. Ranks that cannot tell are missing."""
        found = {}
        for slot in self._slots:
            if recent := [nanoseconds for nanoseconds in slot[_RECENT:] if nanoseconds]:
                found[slot[_RANK]] = median(recent) / 1e9
        return found

    def _sight(self, slot: memoryview[int]) -> Sight:
        return Sight(
            rank=slot[_RANK],
            pid=slot[_PID],
            state=_process_state(slot[_PID]),
            phase=Phase(slot[_PHASE]),
            step=slot[_STEP],
            progress=slot[_PROGRESS],
            beats=slot[_BEATS],
            collectives=slot[_COLLECTIVES],
        )


def _process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Pulse:
    """A rank's side. It shows its step and phase as they change, and beats while its Python can run."""

    def __init__(self, path: str, slot: int, rank: int) -> None:
        descriptor = os.open(path, os.O_RDWR)
        memory = memoryview(mmap.mmap(descriptor, 0)).cast("q")
        os.close(descriptor)
        self._words = memory[slot * _WORDS : (slot + 1) * _WORDS]
        self._words[_RANK] = rank
        self._words[_PID] = os.getpid()  # last: from here on the agent looks
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def begin_steps(self) -> None:
        self._enter(Phase.FIRST_STEP)

    def step_done(self, step: int, own_seconds: float | None) -> None:
        """own_seconds: this rank's own work in the step, without waiting for others; None where that is unknown."""
        words = self._words
        words[_STEP] = step
        if own_seconds is not None:
            words[_RECENT + step % RECENT_STEPS] = int(own_seconds * 1e9)
        self._enter(Phase.STEPPING)

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The main thread does something that has a time of its own, and then goes on with what it did."""
        before = Phase(self._words[_PHASE])
        self._enter(phase)
        yield
        self._enter(before)

    def _enter(self, phase: Phase) -> None:
        self._words[_PHASE] = phase
        self._words[_PROGRESS] += 1

    def _beat(self) -> None:
        import torch.distributed as dist

        while True:
            if dist.is_initialized():
                # Counted when joined, before the wait: the rank that the others wait for has the lowest number.
                self._words[_COLLECTIVES] = dist.group.WORLD._get_sequence_number_for_group()  # type: ignore[union-attr]
            self._words[_BEATS] += 1
            time.sleep(BEAT_SECONDS)
