"""The state of a run, from its folder and its backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.entry import Commit
from checkpoints.log import CommitLog
from checkpoints.store import open_store
from cluster.backend import backend_named
from cluster.job import JobState, Situation
from launcher.bill import bill
from launcher.pace import stragglers
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.records import Records
from launcher.runs import Attempt, Run
from launcher.stay import stays_of


def run_state(run: Run, own_prices: Path | None = None) -> dict[str, Any]:
    """`run, folder, state, cause, step, steps, loss, eta_seconds, job, attempts, bill, stragglers, commits`: what
    `launch status --json` prints.

    state: STARTING, RUNNING or RECOVERING while an attempt is alive, or a launcher that starts another one;
    SUCCEEDED, FAILED or CANCELLED when it ended so; PENDING when nothing runs, and the run can be resumed or waits for
    its scheduler.
    lost_steps: of an attempt, how many steps it had to do again, because the work was lost before.
    gpu_hours: of an attempt; null without GPUs, or where it is not known. bill: null without GPUs, or what
    `Bill.as_json` gives, by the user's own prices, if there are any.
    eta_seconds: of a run that is RUNNING, by its newest steps; else null.
    job: of a run that a scheduler starts, its `id, state, reason, starts_again`; else null.
    """
    records = Records(run.metrics)
    all_attempts = run.attempts()
    attempts = [_ended_state(attempt, records) for attempt in all_attempts[:-1]]
    summary, latest, job = _summary(run, records, all_attempts)
    attempts += [latest] if latest else []
    situation = None if job is None else job.situation
    stays = list(stays_of(all_attempts, attempts, records.seconds_per_step() or 0.0, situation))
    hours = {stay.attempt: stay.gpu_hours for stay in stays}
    total = bill(stays, read_prices(own_prices or SHIPPED), are_own=own_prices is not None)
    entry = CommitLog(open_store(run.checkpoints)).read()
    live = entry.live if entry else ()
    # There are no metrics of a run that goes on elsewhere; its commits tell, too.
    summary["step"] = summary["step"] or max((commit.step for commit in live), default=0)
    return {
        **summary,
        "attempts": [attempt | {"gpu_hours": hours.get(attempt["number"])} for attempt in attempts],
        "bill": None if total is None else total.as_json(),
        "stragglers": [asdict(found) for found in stragglers(all_attempts[-1].paces())] if all_attempts else [],
        "commits": commits_as_json(live),
    }


def run_summary(run: Run) -> dict[str, Any]:
    """`run_state` without its lists: quick to find, however long the run is."""
    return _summary(run, Records(run.metrics), run.attempts())[0]


def _summary(
    run: Run, records: Records, attempts: list[Attempt]
) -> tuple[dict[str, Any], dict[str, Any] | None, _JobState | None]:
    """The run, its newest attempt, and the job of that."""
    latest = attempts[-1] if attempts else None
    job = _job(latest) if latest else None
    attempt = _attempt_state(latest, records, job) if latest else None
    state, cause = _state_of_run(attempt, job)
    last = records.last()
    summary = {
        "run": run.name,
        "folder": str(run.folder),
        "state": state,
        "cause": cause,
        "step": last["step"] if last else 0,
        "steps": run.record()["steps"],
        "loss": last["loss"] if last else None,
        "eta_seconds": _eta_seconds(run, records) if state == "RUNNING" else None,
        "job": job.to_json() if job and job.is_of_scheduler else None,
    }
    return summary, attempt, job


def _eta_seconds(run: Run, records: Records) -> float | None:
    last, pace = records.last(), records.seconds_per_step()
    return None if last is None or pace is None else round((run.record()["steps"] - last["step"]) * pace, 1)


def _state_of_run(attempt: dict[str, Any] | None, job: _JobState | None) -> tuple[str, str]:
    if attempt is None or job is None:
        return "PENDING", "not started"
    state, cause = attempt["state"], attempt["cause"]
    if state not in ("PREEMPTED", "LOST"):
        return state, cause
    if job.is_followed:
        return "RECOVERING", cause
    # What ended may have a scheduler that is about to start it again.
    waits = job.is_of_scheduler and job.situation.state is not JobState.ENDED
    return "PENDING", f"{cause}; {job}" if waits else cause


def commit_count(run: Run) -> int:
    """Commits of this run that have reached the store, retired ones included: the log's newest entry says it."""
    entry = CommitLog(open_store(run.checkpoints)).read()
    return 0 if entry is None else entry.commits


def newest_commit(run: Run) -> int:
    """The `n` of the newest commit, in the store or on disks of nodes alone; 0 without one. It grows with each."""
    entry = CommitLog(open_store(run.checkpoints)).read()
    return entry.live[-1].n if entry is not None and entry.live else 0


def commits_as_json(commits: Iterable[Commit]) -> list[dict[str, Any]]:
    return [
        {
            "commit": c.n,
            "step": c.step,
            "bytes": c.bytes,
            "pinned": c.is_pinned,
            "folder": c.folder,
            "stored": c.is_stored,
            "hosts": list(c.hosts),
        }
        for c in commits
    ]


def where(commit: dict[str, Any]) -> str:
    """Where a commit of `commits_as_json` lies that has copies on disks of nodes."""
    hosts = ", ".join(commit["hosts"])
    return f"in the store, and on the disk of {hosts}" if commit["stored"] else f"on the disk of {hosts} alone"


@dataclass(frozen=True, slots=True)
class _JobState:
    """The job of an attempt, and how it is. is_seen: what it writes into the run folder is here."""

    target: str
    handle: str
    situation: Situation
    is_of_scheduler: bool
    is_followed: bool  # by a launcher that starts another one
    is_seen: bool

    def to_json(self) -> dict[str, Any]:
        situation = self.situation
        return {
            "id": self.handle,
            "state": str(situation.state),
            "reason": situation.reason,
            "starts_again": situation.starts_again,
        }

    def __str__(self) -> str:
        reason = f" ({self.situation.reason})" if self.situation.reason else ""
        return f"{self.target} job {self.handle} is {self.situation.state}{reason}"


def _job(attempt: Attempt) -> _JobState | None:
    """None for an attempt that was never submitted."""
    record = attempt.record()
    if "handle" not in record or "target" not in record:
        return None
    backend = backend_named(record["target"])
    outcome = attempt.outcome()
    if outcome is not None and not outcome.wants_another_start:  # nobody need be asked
        situation = Situation(state=JobState.ENDED)
    else:
        situation = backend.situation(record["handle"])
    launcher = record.get("launcher")
    is_followed = launcher is not None and backend.situation(launcher).state is not JobState.ENDED
    return _JobState(
        target=record["target"], handle=record["handle"], situation=situation,
        is_of_scheduler=not backend.needs_launcher, is_followed=is_followed, is_seen=backend.shares_run_folder,
    )  # fmt: skip


def _ended_state(attempt: Attempt, records: Records) -> dict[str, Any]:
    """Of an attempt that others have followed."""
    outcome = attempt.outcome()
    state, cause = (outcome.state, outcome.cause) if outcome else ("LOST", "another attempt has followed it")
    return _as_json(attempt, records, state, cause)


def _attempt_state(attempt: Attempt, records: Records, job: _JobState | None) -> dict[str, Any]:
    outcome = attempt.outcome()
    if outcome is not None:
        return _as_json(attempt, records, outcome.state, outcome.cause)
    state, cause = _state_without_outcome(attempt, job, has_steps=records.steps_of(attempt.number) is not None)
    return _as_json(attempt, records, state, cause)


def _as_json(attempt: Attempt, records: Records, state: str, cause: str) -> dict[str, Any]:
    record, steps = attempt.record(), records.steps_of(attempt.number)
    outcome_file = attempt.folder / "outcome.json"
    return {
        "number": attempt.number,
        "target": record.get("target"),
        "state": state,
        "cause": cause,
        "started": record.get("started"),
        "ended": outcome_file.stat().st_mtime if outcome_file.exists() else None,
        "first_step": steps[0] if steps else None,
        "last_step": steps[1] if steps else None,
        "lost_steps": _lost_steps(attempt),
    }


def _lost_steps(attempt: Attempt) -> int:
    steps = [event.get("steps") for event in attempt.read_events() if event.get("event") == "lost"]
    return sum(count for count in steps if type(count) is int)


def _state_without_outcome(attempt: Attempt, job: _JobState | None, *, has_steps: bool) -> tuple[str, str]:
    if job is not None and job.situation.ended_as:
        return job.situation.ended_as, job.situation.reason
    if job is None or job.situation.state is JobState.ENDED:
        what = str(job) if job is not None and job.is_of_scheduler else "its node process is gone"
        return "LOST", f"{what}; resume the run"
    if job.situation.state is JobState.PENDING:
        return ("LOST" if has_steps else "PENDING"), job.situation.reason
    event = _last_event(attempt)
    if event.get("event") == "restarted":
        return "RECOVERING", str(event.get("cause"))
    is_running = has_steps or not job.is_seen
    return ("RUNNING" if is_running else "STARTING"), str(job) if job.situation.state is JobState.UNKNOWN else ""


def _last_event(attempt: Attempt) -> dict[str, Any]:
    """Empty while there is none."""
    last: dict[str, Any] = {}
    for event in attempt.read_events():
        last = event
    return last
