"""The agent's watch over its ranks: it says who is slow, and ends all of them when one hangs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.pace import Pace
from launcher.runs import Attempt
from launcher.train.failures import Failure, write_failure
from launcher.train.hangs import Hang, HangDetector
from launcher.train.pulse import Pulses, Sight

LOOK_SECONDS = 0.5
PACE_SECONDS = 5.0
STACKS_SECONDS = 5.0
STACKS_SIGNAL = signal.SIGQUIT
_STACKS_BYTES = 20_000


class Watchdog:
    """`hang_seconds` is the shortest patience; 0 ends no rank."""

    def __init__(self, attempt: Attempt, ranks: int, hang_seconds: float) -> None:
        self.failure: Failure | None = None  # what the ranks of the latest watch were ended for
        self._attempt = attempt
        self._pulses = Pulses(ranks)
        self._detector = HangDetector(hang_seconds or math.inf)
        self._host = socket.gethostname()

    @property
    def pulses(self) -> str:
        """Where the ranks show their pulse."""
        return self._pulses.path

    @contextlib.contextmanager
    def watch(self, restart: int, failures_in_a_row: int) -> Iterator[None]:
        """Watch the ranks that are started meanwhile. In a thread: torch elastic has the agent's main thread."""
        self.failure = None
        self._pulses.clear()
        self._detector.begin(failures_in_a_row)
        is_over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(restart, is_over), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _watch(self, restart: int, is_over: threading.Event) -> None:
        # A machine or job that was frozen stood still for us too: that time is nobody's fault.
        clock, last, told = 0.0, time.monotonic(), 0.0
        while not is_over.wait(LOOK_SECONDS):
            now = time.monotonic()
            clock, last = clock + min(now - last, 2 * LOOK_SECONDS), now
            sights = self._pulses.read()
            hang = self._detector.look(sights, clock)
            if hang is not None:
                self._end(hang, sights, restart)
                break
            if now - told > PACE_SECONDS:
                told = now
                self._tell_pace()
        self._tell_pace()

    def _tell_pace(self) -> None:
        seconds = self._pulses.own_seconds()
        paces = [Pace(rank=rank, host=self._host, seconds=value) for rank, value in seconds.items()]
        with contextlib.suppress(OSError):  # a full disk
            self._attempt.write_paces(paces)

    def _end(self, hang: Hang, sights: Sequence[Sight], restart: int) -> None:
        """Have all ranks write their stacks, then kill all: one that holds its GIL heeds no other signal."""
        log = self._attempt.rank_log(hang.rank)
        start = log.stat().st_size
        self._collect_stacks(hang, sights)
        with open(log, "rb") as file:
            file.seek(start)
            stacks = file.read(_STACKS_BYTES).decode(errors="replace")
        self.failure = Failure(
            rank=hang.rank,
            host=self._host,
            kind="hung",
            cause=f"{hang.cause}; stacks of all ranks are in the logs",
            time=time.time(),
            details=stacks,
            log=str(log),
        )
        for sight in sights:
            _send(sight.pid, signal.SIGKILL)
        write_failure(self._attempt, restart, self.failure)

    def _collect_stacks(self, hang: Hang, sights: Sequence[Sight]) -> None:
        logs = [self._attempt.rank_log(sight.rank) for sight in sights]
        for sight, log in zip(sights, logs, strict=True):
            _append(log, f"--- rank {hang.rank}: {hang.cause}; rank {sight.rank}: {hang.ranks[sight.rank]} ---\n")
        before = _sizes(logs)
        for sight in sights:
            _send(sight.pid, STACKS_SIGNAL)
            _send(sight.pid, signal.SIGCONT)  # a stopped rank writes its stack when it runs again
        _wait_until_written(logs, before)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _append(log: Path, line: str) -> None:
    with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
        file.write(line)


def _sizes(logs: Sequence[Path]) -> list[int]:
    return [log.stat().st_size for log in logs]


def _wait_until_written(logs: Sequence[Path], before: list[int]) -> None:
    """Until each log has grown and none grows any more; not for long, because a full disk takes nothing."""
    deadline = time.monotonic() + STACKS_SECONDS
    previous = before
    while time.monotonic() < deadline:
        time.sleep(0.2)
        sizes = _sizes(logs)
        if sizes == previous and all(now > then for now, then in zip(sizes, before, strict=True)):
            return
        previous = sizes
