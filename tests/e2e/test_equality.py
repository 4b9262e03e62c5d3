"""A run that was killed, anywhere and any number of times, ends like one that was not: bit by bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.runs_for_tests import (
    assert_same_ending,
    json_lines,
    launch,
    small_words,
    start,
    steps_of,
    tensorboard_steps,
    wait_for,
)

from launcher.rehearsal.processes import Processes

LONG = 160  # steps of a run that is not over before it was killed often enough, on a busy machine either


@pytest.mark.parametrize("ranks", [1, 2])
def test_killing_ranks_at_random_moments_changes_nothing(tmp_path, undisturbed, ranks):
    seed = 100 + ranks
    moments = random.Random(seed)
    launcher = start(*small_words(ranks, steps=LONG), "--name", "killed", runs_dir=tmp_path)
    run = tmp_path / "killed"
    kills = 0
    while kills < 3 and launcher.poll() is None:
        time.sleep(moments.uniform(0.0, 0.8))
        victims = Processes(launcher.pid).find()["rank"]
        # One restart without progress is an accident, four are a defect of the run: let it commit in between.
        if victims and len(json_lines(run / "attempts/0001/events.jsonl")) > kills:
            os.kill(moments.choice(victims), signal.SIGKILL)
            kills += 1
            wait_for_new_commit(run, launcher)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    assert kills >= 2, f"seed {seed}: the run ended after {kills} kills"
    assert_same_ending(run, undisturbed(ranks, LONG))


def wait_for_new_commit(run: Path, launcher, attempt: int = 1) -> None:
    before = committed_steps(run, attempt)
    wait_for(lambda: committed_steps(run, attempt) != before or launcher.poll() is not None, "a new commit")


def committed_steps(run: Path, attempt: int = 1) -> list[int]:
    events = json_lines(run / f"attempts/{attempt:04d}/events.jsonl")
    return [event["step"] for event in events if event["event"] == "committed"]


def test_saving_when_that_is_worth_it_changes_nothing(tmp_path, undisturbed):
    words = small_words(2, checkpoint__every="auto")
    launcher = start(*words, "--mtbf-hours", "0.0001", "--name", "auto", runs_dir=tmp_path)
    run = tmp_path / "auto"
    wait_for_new_commit(run, launcher)
    os.kill(Processes(launcher.pid).find()["rank"][0], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    assert "killed by SIGKILL; its ranks start again from the newest commit" in errors
    assert len(committed_steps(run)) >= 3
    assert_same_ending(run, undisturbed(2))


def test_metrics_have_every_step_once_after_ten_interruptions(tmp_path, undisturbed):
    run = tmp_path / "run"
    for stop in (5, 10):
        result = launch(*small_words(1, steps=LONG), f"stop_after={stop}", "--name", "run", runs_dir=tmp_path)
        assert result.returncode == 75, result.stderr
    launcher = start("resume", "run", "--gpus", "1", runs_dir=tmp_path)
    killed: set[int] = set()
    for _ in range(8):
        # Found before the commit, and killed right after it: finding takes a while on a busy machine, and there are
        # not many more commits than kills.
        victim = wait_for(lambda: set(Processes(launcher.pid).find()["rank"]) - killed, "the rank to start again").pop()
        wait_for_new_commit(run, launcher, attempt=3)
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    restarts = [e for e in json_lines(run / "attempts/0003/events.jsonl") if e["event"] == "restarted"]
    assert len([restart for restart in restarts if "killed by SIGKILL" in restart["cause"]]) == 8
    assert_same_ending(run, undisturbed(1, LONG))
    assert steps_of(run) == list(range(1, LONG + 1))
    assert tensorboard_steps(run, "train/loss") == list(range(1, LONG + 1))
