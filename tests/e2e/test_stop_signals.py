"""A stop signal to any process, at any time: the run stops, and ends later like one that was not interrupted."""

from __future__ import annotations

import os
import signal

import pytest
from support.runs_for_tests import (
    STEPS,
    assert_same_ending,
    finish,
    small_words,
    start,
    status,
    wait_for,
    wait_for_step,
)

from launcher.rehearsal.processes import Processes


@pytest.mark.parametrize("receiver", ["launcher", "node", "agent", "forkserver", "rank", "writer"])
def test_a_stop_signal_to_any_process_commits_and_exits_75(tmp_path, undisturbed, receiver):
    number = {
        "launcher": signal.SIGINT,
        "node": signal.SIGTERM,
        "agent": signal.SIGUSR1,
        "forkserver": signal.SIGUSR2,
    }.get(receiver, signal.SIGTERM)
    launcher = start(*small_words(2), "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    os.kill(launcher.pid if receiver == "launcher" else Processes(launcher.pid).find()[receiver][0], number)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert "launch resume" in errors.splitlines()[-1]
    state = status(run)
    assert state["state"] == "PENDING"
    assert state["commits"][-1]["step"] == state["step"] < STEPS
    assert state["cause"] == number.name
    if receiver in ("launcher", "rank"):  # where the signal arrived makes no difference to what follows
        finish(run, 2)
        assert_same_ending(run, undisturbed(2))


def test_a_stop_signal_during_start_up_is_handled(tmp_path, undisturbed):
    launcher = start(*small_words(2), "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for((run / "attempts/0001/logs/node-0.log").exists, "the node process")
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert status(run)["step"] == 0
    finish(run, 2)
    assert_same_ending(run, undisturbed(2))


def test_a_second_interrupt_stops_at_once_and_the_run_resumes(tmp_path, undisturbed):
    launcher = start(*small_words(2), "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 8)
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    finish(run, 2)
    assert_same_ending(run, undisturbed(2))
