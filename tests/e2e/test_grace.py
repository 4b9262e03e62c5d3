"""A run that is ended by force some seconds after the notice is gone before that, and loses no commit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from support.campaign import newest_commit_step
from support.runs_for_tests import (
    digests,
    json_lines,
    launch,
    small_words,
    start,
    steps_of,
    wait_for_step,
)

from cluster.preemption import Mark, Notice
from launcher.rehearsal.processes import Processes

GRACE_SECONDS = 10


def events(run: Path) -> list[str]:
    return [event["event"] for event in json_lines(run / "attempts/0001/events.jsonl")]


def finish(run: Path, words: list[str]) -> None:
    result = launch(*words, "--name", run.name, runs_dir=run.parent, timeout=300)
    assert result.returncode == 0, result.stderr


def test_a_save_that_outlasts_the_grace_is_cut_off_and_the_commit_before_it_stays(tmp_path, undisturbed):
    words = small_words(2)
    launcher = start(*words, "--grace-seconds", str(GRACE_SECONDS), "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    processes = Processes(launcher.pid)
    writers = processes.find()["writer"]
    for writer in writers:
        os.kill(writer, signal.SIGSTOP)
    newest = newest_commit_step(run)
    sent = time.monotonic()
    os.kill(processes.find()["node"][0], signal.SIGTERM)
    _, errors = launcher.communicate(timeout=300)
    seconds = time.monotonic() - sent
    for writer in writers:
        os.kill(writer, signal.SIGCONT)
    assert launcher.returncode == 75, errors
    assert f"the {GRACE_SECONDS} s of grace ended first" in errors
    assert seconds < GRACE_SECONDS, "whoever ends the run by force would have found it"
    assert newest_commit_step(run) >= newest
    finish(run, words)
    assert digests(run) == digests(undisturbed(2))


def test_where_no_time_is_left_for_a_save_none_is_begun(tmp_path, undisturbed):
    words = small_words(2)
    launcher = start(*words, "--grace-seconds", "1", "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    os.kill(Processes(launcher.pid).find()["node"][0], signal.SIGTERM)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert newest_commit_step(run) % 5 == 0, "there was no time for one of the step that the run stopped at"
    finish(run, words)
    assert digests(run) == digests(undisturbed(2))


def test_a_grace_that_is_long_enough_changes_nothing(tmp_path):
    launcher = start(*small_words(2), "--grace-seconds", "60", "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    os.kill(Processes(launcher.pid).find()["node"][0], signal.SIGTERM)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert newest_commit_step(run) == steps_of(run)[-1]
    assert "save_late" not in events(run)


def test_a_run_that_has_a_limit_saves_before_it_unasked(tmp_path, undisturbed):
    """The limit is told as the agent of a batch job tells it."""
    words = small_words(2)
    launcher = start(*words, "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    agent = psutil.Process(Processes(launcher.pid).find()["agent"][0])
    notice = Notice(Path(agent.environ()["LAUNCH_NOTICE"]))
    notice.set_limit(Mark(time.monotonic() + 2, "soon"))
    notice.set_end(Mark(time.monotonic() + 60, "by then"))
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert "stopped after step" in errors
    assert "(the last save may take " in errors
    assert newest_commit_step(run) == steps_of(run)[-1] < 60
    finish(run, words)
    assert digests(run) == digests(undisturbed(2))
