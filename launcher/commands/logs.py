"""`launch logs`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from cluster.backend import Backend, backend_named
from launcher.errors import UsageError
from launcher.places import runs_dir
from launcher.runs import Attempt, Run, find_run, open_regular
from launcher.status import run_summary
from launcher.terminal import answer_lines

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
_PIECE_BYTES = 2**20


def logs(arguments: argparse.Namespace) -> int:
    """Print what a rank has printed in all attempts; with --follow, until the run has ended or waits."""
    run = find_run(arguments.run, runs_dir(arguments.runs_dir))
    run.record()
    attempts = run.attempts()
    if attempts and not (backend := backend_named(attempts[-1].record().get("target", "local"))).shares_run_folder:
        return _print_what_comes_from(backend, attempts[-1], arguments)
    ranks = attempts[-1].record().get("nodes", 1) * attempts[-1].record().get("ranks_per_node", 1) if attempts else 0
    if arguments.rank >= ranks:
        raise UsageError(f"--rank {arguments.rank} is not one of the {ranks} ranks of {run.name}; use a lower one")
    reading = _Reading(run, arguments.rank)
    for text in reading.new():
        answer_lines(text)
    while arguments.follow and reading.goes_on():
        for text in reading.new():
            answer_lines(text)
        time.sleep(POLL_SECONDS)
    return 0


def _print_what_comes_from(backend: Backend, attempt: Attempt, arguments: argparse.Namespace) -> int:
    """Of a job whose run folder is not here."""
    if arguments.rank:
        raise UsageError(
            f"--rank {arguments.rank}: {backend.name} has what the job prints, not each rank; leave it out"
        )
    for line in backend.log_lines(str(attempt.record().get("handle")), follow=arguments.follow):
        answer_lines(line)
    return 0


class _Reading:
    """How far the logs of one rank have been read, over all attempts."""

    def __init__(self, run: Run, rank: int) -> None:
        self._run = run
        self._rank = rank
        self._positions: dict[int, int] = {}
        self._next_look = 0.0
        self._has_ended = False

    def new(self) -> Iterator[str]:
        for attempt in self._run.attempts():
            yield from self._new_of(attempt)

    def goes_on(self) -> bool:
        """Whether there may be more: the run's state is looked at now and then, and the log once after that."""
        if self._has_ended:
            return False
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            summary = run_summary(self._run)
            is_alive = summary["state"] in ("STARTING", "RUNNING", "RECOVERING")
            self._has_ended = not is_alive and (summary["job"] or {}).get("state", "ENDED") == "ENDED"
        return True

    def _new_of(self, attempt: Attempt) -> Iterator[str]:
        try:
            file = open_regular(attempt.rank_log(self._rank))
        except FileNotFoundError:
            return
        with file:
            file.seek(self._positions.get(attempt.number, 0))
            while piece := file.read(_PIECE_BYTES):
                whole = piece[: piece.rfind(b"\n") + 1] or piece
                self._positions[attempt.number] = self._positions.get(attempt.number, 0) + len(whole)
                file.seek(self._positions[attempt.number])
                yield whole.decode(errors="replace").removesuffix("\n")
