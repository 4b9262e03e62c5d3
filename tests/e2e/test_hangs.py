"""A rank that hangs is named, with the stacks of all ranks, and the run goes on; one that is slow is left alone."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.runs_for_tests import (
    REPOSITORY,
    digests,
    json_lines,
    launch,
    small_words,
    start,
    status,
    steps_of,
    wait_for_step,
)

from launcher.rehearsal.processes import Processes

RECIPES = REPOSITORY / "tests/support/recipes/hangs.py"
HOST = os.uname().nodename


def restarts(run: Path) -> list[str]:
    """Their causes."""
    events = json_lines(run / "attempts/0001/events.jsonl")
    return [event["cause"] for event in events if event["event"] == "restarted"]


def stacks_of(run: Path, rank: int) -> str:
    return (run / f"attempts/0001/logs/rank-{rank}.log").read_text()


def pid_of_rank(run: Path, rank: int) -> int:
    """From the last line with which a rank begins its log."""
    starts = [line for line in stacks_of(run, rank).splitlines() if line.startswith("--- restart")]
    return int(starts[-1].split()[-2])


def test_a_stopped_rank_is_named_and_its_run_ends_like_an_undisturbed_one(tmp_path, undisturbed):
    launcher = start(*small_words(2), "--hang-seconds", "4", "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    victim = pid_of_rank(run, 1)
    assert victim in Processes(launcher.pid).find()["rank"]
    os.kill(victim, signal.SIGSTOP)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    # On a starved machine a patience of 4 s may end; what counts is that the stopped rank is named.
    [named] = [cause for cause in restarts(run) if f"rank 1 on {HOST}: stopped (by SIGSTOP or a debugger) for" in cause]
    assert named.endswith("; stacks of all ranks are in the logs")
    for rank in (0, 1):  # each of them anywhere in a step or between two
        assert re.search(r'loop.py", line \d+ in train$', stacks_of(run, rank), re.MULTILINE)
    assert f"rank 1 on {HOST}: stopped" in errors
    assert digests(run) == digests(undisturbed(2))


@pytest.mark.parametrize(
    ("recipe", "cause", "function"),
    [
        ("GIL", "runs no Python: it holds the GIL", "in holds_the_gil"),
        ("NEVER_JOINS", "has not joined the collective that other ranks wait in", "in never_joins"),
    ],
)
def test_a_rank_that_hangs_in_a_step_is_named_and_the_run_goes_on(tmp_path, recipe, cause, function):
    words = [f"{RECIPES}:{recipe}", f"data.arguments.once={tmp_path}", "--gpus", "2", "--hang-seconds", "4"]
    result = launch(*words, "--name", "run", runs_dir=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    [named] = [said for said in restarts(run) if f"rank 1 on {HOST}: {cause}" in said and "at step 6;" in said]
    assert named.endswith("; stacks of all ranks are in the logs")
    assert function in stacks_of(run, 1)
    assert "in train_step" in stacks_of(run, 0)
    assert "rank 0: waits for other ranks" in stacks_of(run, 0)
    assert steps_of(run) == list(range(1, 13))


def test_slow_and_irregular_steps_raise_no_alarm(tmp_path):
    """The longest takes more than the shortest patience, but not three times as long as one before it."""
    result = launch(
        f"{RECIPES}:IRREGULAR", "--gpus", "2", "--hang-seconds", "6", "--name", "run", runs_dir=tmp_path, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert restarts(tmp_path / "run") == []


def test_a_slow_rank_is_named_in_the_status(tmp_path):
    result = launch(f"{RECIPES}:SLOW_RANK", "--gpus", "2", "--name", "run", runs_dir=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    [slow] = status(tmp_path / "run")["stragglers"]
    assert (slow["rank"], slow["host"]) == (1, HOST)
    assert slow["ratio"] > 1.5
    assert f"rank 1 on {HOST} is slow: " in launch("status", "run", runs_dir=tmp_path).stdout
