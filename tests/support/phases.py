"""Where a run is at this moment, read from its folder while it trains."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_UP, FIRST_STEP, STEP, SAVE, EVALUATION, LAST_STEP, EXIT = PHASES = (
    "start-up",
    "first step",
    "step",
    "save",
    "evaluation",
    "last step",
    "exit",
)
_TAIL_BYTES = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a run saves, evaluates and ends, in steps."""

    steps: int
    save_every: int
    evaluate_every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """`since`: when the ranks at work were started; 0 when none ever was. `step`: the last completed one."""

    since: float
    step: int
    phase: str


def observe(run: Path, schedule: Schedule) -> Moment:
    """The phase is the one that the folder shows: a process may be a few milliseconds ahead of what it has told."""
    attempts = sorted(path.parent for path in run.glob("attempts/*/attempt.json"))
    if not attempts:
        return Moment(since=0.0, step=0, phase=START_UP)
    since = float(json.loads((attempts[-1] / "attempt.json").read_text())["started"])
    commits: list[int] = []
    evaluated, start, is_fresh = -1, 0, False
    for event in _last_lines(attempts[-1] / "events.jsonl"):
        told = event["event"]
        # The ranks of a later attempt tell of their model, too, but go on to restore a commit.
        is_fresh = told == "model" and len(attempts) == 1
        if told == "restarted":
            since, commits, evaluated, start = event["time"], [], -1, 0
        elif told == "resumed":
            start = event["step"]
        elif told == "committed":
            commits.append(event["step"])
        elif told == "evaluated":
            evaluated = event["step"]
    step = max(start, _last_step(run / "metrics.jsonl", since, int(attempts[-1].name)))
    return Moment(
        since=since, step=step, phase=_phase(schedule, start, step, max([start, *commits]), evaluated, is_fresh)
    )


def _phase(schedule: Schedule, start: int, step: int, committed: int, evaluated: int, is_fresh: bool) -> str:
    if step == schedule.steps:
        if committed < step:
            return LAST_STEP
        return EXIT if evaluated == step else EVALUATION
    if step == start:
        return EVALUATION if is_fresh else START_UP
    if step % schedule.evaluate_every == 0 and evaluated != step:
        return EVALUATION
    if step - step % schedule.save_every > committed:
        return SAVE
    return FIRST_STEP if step == start + 1 else STEP


def _last_step(metrics: Path, since: float, attempt: int) -> int:
    """Of the ranks at work: a file that is older than they are tells of those before them."""
    try:
        if metrics.stat().st_mtime <= since:
            return 0
    except FileNotFoundError:
        return 0
    return max((record["step"] for record in _last_lines(metrics) if record["attempt"] == attempt), default=0)


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
    except FileNotFoundError:
        return
    lines = data.split(b"\n")[:-1]
    for line in lines[1:] if size > _TAIL_BYTES else lines:
        try:
            yield json.loads(line)
        except ValueError:  # torn by a kill
            continue
