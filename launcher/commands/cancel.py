"""`launch cancel`."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace

from cluster.backend import Backend, backend_named
from cluster.job import JobState
from launcher.errors import LaunchError
from launcher.groups import members_of
from launcher.places import runs_dir, word_for
from launcher.runs import PREEMPTED_CODE, Outcome, Run, find_run
from launcher.terminal import say

SAVE_SECONDS = 120.0
END_SECONDS = 60.0
POLL_SECONDS = 0.2


def cancel(arguments: argparse.Namespace) -> int:
    """Have the run, or all of a group, save and stop, for good: its scheduler does not start it again. It can be
    resumed."""
    folder = runs_dir(arguments.runs_dir)
    runs = members_of(arguments.run, folder) or [find_run(arguments.run, folder)]
    jobs = [(run, job) for run in runs if (job := _told_to_stop(run)) is not None]
    for run, (backend, handle) in jobs:
        if not _ends(backend, handle, SAVE_SECONDS):
            backend.kill(str(run.attempts()[-1].record()["handle"]))
            if not _ends(backend, handle, END_SECONDS):
                raise LaunchError(
                    f"{backend.name} job {handle} does not end; look at it with the tools of {backend.name}"
                )
        _write_cancelled(run)
    return 0


def _told_to_stop(run: Run) -> tuple[Backend, str] | None:
    """Where the run is at work, and who is: the launcher that starts its jobs, where it needs one, or its job. None
    when nobody is."""
    run.record()
    attempts = run.attempts()
    record = attempts[-1].record() if attempts else {}
    outcome = attempts[-1].outcome() if attempts else None
    backend = backend_named(record.get("target", "local"))
    has_ended = outcome is not None and not outcome.wants_another_start
    for handle in () if has_ended else (record.get("launcher"), record.get("handle")):
        if handle is not None and backend.situation(handle).state is not JobState.ENDED:
            say(f"{backend.name} job {record['handle']}: saving, then stopping")
            backend.stop(handle, signal.SIGTERM)
            return backend, handle
    say(f"{run.name} is not at work; there is nothing to cancel")
    return None


def _ends(backend: Backend, handle: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while backend.situation(handle).state is not JobState.ENDED:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _write_cancelled(run: Run) -> None:
    """An outcome that any later start of the job would respect. What ended by itself stays as it is."""
    attempt = run.attempts()[-1]
    outcome = attempt.outcome() or Outcome(state="LOST", cause="", exit_code=PREEMPTED_CODE)
    if outcome.state in ("PREEMPTED", "LOST"):
        attempt.write_outcome(replace(outcome, state="CANCELLED", cause="launch cancel"))
    at = f" at step {outcome.step}" if outcome.step else ""
    say(f"{run.name} has stopped{at}; launch resume {word_for(run.folder)} goes on")
