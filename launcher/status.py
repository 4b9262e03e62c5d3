"""The state of a run, from its folder and its backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from checkpoints.entry import Commit
from checkpoints.log import CommitLog
from checkpoints.store import open_store
from cluster.backend import backend_named
from cluster.job import JobState
from launcher.pace import stragglers
from launcher.records import Records
from launcher.runs import Attempt, Run, json_lines, open_regular


def run_state(run: Run) -> dict[str, Any]:
    """`run, state, cause, step, steps, loss, attempts, stragglers, commits`: what `launch status --json` prints.

    state: STARTING, RUNNING or RECOVERING while an attempt is alive; SUCCEEDED or FAILED when it ended so; PENDING when
    nothing runs and the run can be resumed.
    """
    records = Records(run.metrics)
    all_attempts = run.attempts()
    attempts = [_attempt_state(attempt, records) for attempt in all_attempts]
    entry = CommitLog(open_store(run.checkpoints)).read()
    return {
        **_summary(run, records, attempts[-1] if attempts else None),
        "attempts": attempts,
        "stragglers": [asdict(found) for found in stragglers(all_attempts[-1].paces())] if all_attempts else [],
        "commits": commits_as_json(entry.live if entry else ()),
    }


def run_summary(run: Run) -> dict[str, Any]:
    """`run_state` without its lists: quick to find, however long the run is."""
    records, attempts = Records(run.metrics), run.attempts()
    return _summary(run, records, _attempt_state(attempts[-1], records) if attempts else None)


def _summary(run: Run, records: Records, latest: dict[str, Any] | None) -> dict[str, Any]:
    state, cause = (latest["state"], latest["cause"]) if latest else ("PENDING", "not started")
    last = records.last()
    return {
        "run": run.name,
        "folder": str(run.folder),
        "state": state if state not in ("PREEMPTED", "LOST") else "PENDING",
        "cause": cause,
        "step": last["step"] if last else 0,
        "steps": run.record()["steps"],
        "loss": last["loss"] if last else None,
    }


def commit_count(run: Run) -> int:
    """Commits of this run so far, retired ones included; the log is short to read: its newest entry says it."""
    entry = CommitLog(open_store(run.checkpoints)).read()
    return 0 if entry is None else entry.commits


def commits_as_json(commits: Iterable[Commit]) -> list[dict[str, object]]:
    return [
        {"commit": c.n, "step": c.step, "bytes": c.bytes, "pinned": c.is_pinned, "folder": c.folder} for c in commits
    ]


def _attempt_state(attempt: Attempt, records: Records) -> dict[str, Any]:
    record, outcome = attempt.record(), attempt.outcome()
    steps = records.steps_of(attempt.number)
    if outcome is not None:
        state, cause = outcome.state, outcome.cause
    else:
        state, cause = _state_without_outcome(attempt, record, has_steps=steps is not None)
    return {
        "number": attempt.number,
        "target": record.get("target"),
        "state": state,
        "cause": cause,
        "started": record.get("started"),
        "ended": (attempt.folder / "outcome.json").stat().st_mtime if outcome else None,
        "first_step": steps[0] if steps else None,
        "last_step": steps[1] if steps else None,
    }


def _state_without_outcome(attempt: Attempt, record: dict[str, Any], *, has_steps: bool) -> tuple[str, str]:
    is_submitted = "handle" in record and "target" in record
    if not is_submitted or backend_named(record["target"]).state(record["handle"]) is JobState.ENDED:
        return "LOST", "its node process is gone; resume the run"
    event = _last_event(attempt)
    if event.get("event") == "restarted":
        return "RECOVERING", str(event.get("cause"))
    return ("RUNNING" if has_steps else "STARTING"), ""


def _last_event(attempt: Attempt) -> dict[str, Any]:
    """Empty while there is none; the file may be growing."""
    last: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError), open_regular(attempt.events) as file:
        for event, _ in json_lines(file):
            last = event or last
    return last
