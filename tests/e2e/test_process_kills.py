"""Whichever process of a run is killed, it ends like one that was not: bit by bit."""

from __future__ import annotations

import os
import signal

import pytest
from support.runs_for_tests import (
    assert_same_ending,
    finish,
    small_words,
    start,
    status,
    wait_for,
    wait_for_step,
)

from launcher.rehearsal.processes import Processes


@pytest.mark.parametrize("victim", ["launcher", "agent", "forkserver", "writer"])
def test_killing_any_process_loses_nothing(tmp_path, undisturbed, victim):
    launcher = start(*small_words(2), "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for_step(run, 12)
    pid = launcher.pid if victim == "launcher" else Processes(launcher.pid).find()[victim][0]
    os.kill(pid, signal.SIGKILL)
    launcher.communicate(timeout=300)
    if victim == "launcher":
        wait_for(lambda: status(run)["state"] == "PENDING", "the run to stop when its launcher was killed")
        finish(run, 2)
    else:
        assert launcher.returncode == 0
    assert_same_ending(run, undisturbed(2))
