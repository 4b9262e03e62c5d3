"""The agent's watch over its ranks: it says who is slow, and ends all of them when one hangs, on whichever node.

The first node's agent decides, because it alone sees all ranks: those of one node may only wait for those of another.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from launcher.pace import Pace
from launcher.runs import Attempt
from launcher.train.failures import Failure, write_failure
from launcher.train.hangs import Hang, HangDetector
from launcher.train.nodes import Nodes
from launcher.train.pulse import Pulses, Sight

LOOK_SECONDS = 0.5
PACE_SECONDS = 5.0
STACKS_SECONDS = 5.0
STACKS_PAUSE_SECONDS = 0.5  # a rank on a crowded machine may pause that long between two lines
STACKS_SIGNAL = signal.SIGQUIT
_STACKS_BYTES = 20_000


class Watchdog:
    """`hang_seconds` is the shortest patience; 0 ends no rank.

    has_ended_ranks, failure: whether the ranks of the latest watch were ended, and for which one of this node.
    """

    def __init__(self, attempt: Attempt, nodes: Nodes, ranks: int, hang_seconds: float) -> None:
        self.has_ended_ranks = False
        self.failure: Failure | None = None
        self._attempt = attempt
        self._nodes = nodes
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
        self.has_ended_ranks, self.failure = False, None
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
            self._nodes.show([])

    def _watch(self, restart: int, is_over: threading.Event) -> None:
        # A machine or job that was frozen stood still for us too: that time is nobody's fault.
        clock, last, told = 0.0, time.monotonic(), 0.0
        while not is_over.wait(LOOK_SECONDS):
            now = time.monotonic()
            clock, last = clock + min(now - last, 2 * LOOK_SECONDS), now
            sights = self._pulses.read()
            self._nodes.show(sights)
            if self._nodes.ranks_must_end.is_set():
                self._end(sights, restart)
            elif self._nodes.leads:
                hang = self._detector.look([*sights, *self._nodes.sights_of_others()], clock)
                if hang is not None:
                    self._nodes.end_all_ranks(hang)
                    self._end(sights, restart)
            if now - told > PACE_SECONDS:
                told = now
                self._tell_pace()
        self._tell_pace()

    def _tell_pace(self) -> None:
        seconds = self._pulses.own_seconds()
        paces = [Pace(rank=rank, host=self._host, seconds=value) for rank, value in seconds.items()]
        with contextlib.suppress(OSError):  # a full disk
            self._attempt.write_paces(paces)

    def _end(self, sights: Sequence[Sight], restart: int) -> None:
        """Kill the ranks: one that holds its GIL heeds no other signal. After a hang all write their stacks first."""
        hang = self._nodes.hang
        if hang is not None and not self.has_ended_ranks:
            self._collect_stacks(hang, sights, restart)
        self.has_ended_ranks = True
        for sight in sights:
            _send(sight.pid, signal.SIGKILL)

    def _collect_stacks(self, hang: Hang, sights: Sequence[Sight], restart: int) -> None:
        logs = {sight.rank: self._attempt.rank_log(sight.rank) for sight in sights}
        starts = {rank: log.stat().st_size for rank, log in logs.items()}
        for rank, log in logs.items():
            about = hang.ranks.get(rank, "began after that")
            _append(log, f"--- rank {hang.rank}: {hang.cause}; rank {rank}: {about} ---\n")
        before = _sizes(logs.values())
        for sight in sights:
            _send(sight.pid, STACKS_SIGNAL)
            _send(sight.pid, signal.SIGCONT)  # a stopped rank writes its stack when it runs again
        _wait_until_written(logs.values(), before)
        if hang.rank in logs:
            self.failure = self._describe(hang, logs[hang.rank], starts[hang.rank])
            write_failure(self._attempt, restart, self.failure)

    def _describe(self, hang: Hang, log: Path, start: int) -> Failure:
        """The failure of a rank that hung, with the stacks that its log holds from `start` on."""
        with open(log, "rb") as file:
            file.seek(start)
            stacks = file.read(_STACKS_BYTES).decode(errors="replace")
        cause = f"{hang.cause}; stacks of all ranks are in the logs"
        return Failure(
            rank=hang.rank, host=self._host, kind="hung", cause=cause, time=time.time(), details=stacks, log=str(log)
        )


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _append(log: Path, line: str) -> None:
    with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
        file.write(line)


def _sizes(logs: Iterable[Path]) -> list[int]:
    return [log.stat().st_size for log in logs]


def _wait_until_written(logs: Collection[Path], before: list[int]) -> None:
    """Until each log has grown and none grows any more; not for long, because a full disk takes nothing."""
    deadline = time.monotonic() + STACKS_SECONDS
    previous = before
    while time.monotonic() < deadline:
        time.sleep(STACKS_PAUSE_SECONDS)
        sizes = _sizes(logs)
        if sizes == previous and all(now > then for now, then in zip(sizes, before, strict=True)):
            return
        previous = sizes
