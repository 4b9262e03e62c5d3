"""Runs on spot machines that this one plays: a sample of scripts/campaign/spot, and what else a user may do."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest
from support.campaign import Course
from support.metadata_server import metadata_server
from support.phases import Schedule
from support.runs_for_tests import Processes, launch, read_until, small_words, start, status, wait_for_step
from support.spot import BOTH, SpotRun

LINE = {"after_seconds": 0, "nodes": [1], "notice_seconds": 0, "gone_seconds": 0}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return Course(tmp_path_factory.mktemp("spot"), Schedule(steps=60, save_every=5, evaluate_every=120))


def test_machines_that_are_taken_or_crash_change_nothing(course):
    run = SpotRun(course, "disturbed", ranks=2, trace=[{**LINE, "after_seconds": 0.3, "nodes": BOTH}])
    launcher = run.launch()
    try:
        assert read_until(launcher, "asking for other").startswith("nodes 0 and 1 taken away without notice")
        wait_for_step(run.run, 12)
        os.kill(Processes(launcher.pid).find()["node"][1], signal.SIGKILL)
        assert run.wait_for_end() == 0
    finally:
        run.give_up()
    run.check_ending()
    told = status(run.run)
    attempts = told["attempts"]
    assert (told["bill"], {attempt["gpu_hours"] for attempt in attempts}) == (None, {None})  # its ranks are on CPUs
    assert [attempt["state"] for attempt in attempts] == ["LOST", "LOST", "SUCCEEDED"]
    assert attempts[0]["cause"] == "nodes 0 and 1 taken away without notice"
    assert attempts[1]["cause"].startswith("node 1 (127.0.0.1) has ")
    assert attempts[2]["first_step"] == attempts[1]["last_step"] + 1


@dataclass(frozen=True)
class Waiting:
    """A run that got a notice, found no other machines, and was cancelled; and what it was before and after that."""

    run: SpotRun
    state: str
    exit_code: int
    cancelled: str


@pytest.fixture(scope="module")
def waiting(course) -> Waiting:
    run = SpotRun(course, "waiting", ranks=2, trace=[{**LINE, "notice_seconds": 30, "gone_seconds": 900}])
    launcher = run.launch()
    try:
        assert "node 1 taken away with a notice of 30 s" in read_until(launcher, "asking for other")
        assert read_until(launcher, "too few").startswith("local_spot: there are too few spot machines (enough in ")
        state = status(run.run)["state"]
        cancelled = launch("cancel", "waiting", runs_dir=course.folder)
        assert cancelled.returncode == 0, cancelled.stderr
        return Waiting(run, state, run.wait_for_end(), status(run.run)["state"])
    finally:
        run.give_up()


def test_a_run_that_waits_for_machines_can_be_cancelled(waiting):
    assert (waiting.state, waiting.exit_code, waiting.cancelled) == ("RECOVERING", 75, "CANCELLED")


def test_of_two_launchers_that_resume_at_once_one_goes_on_and_the_other_says_who(waiting, tmp_path):
    run = waiting.run.run
    (run / "spot/interruptions.jsonl").unlink()  # there are machines again
    (tmp_path / "trace").touch()
    words = ("resume", run.name, "--spot-trace", str(tmp_path / "trace"))
    both = [start(*words, runs_dir=run.parent) for _ in range(2)]
    said = {launcher.communicate(timeout=300)[1].splitlines()[-1]: launcher.returncode for launcher in both}
    assert sorted(said.values()) == [0, 2], said
    (refusal,) = [line for line, code in said.items() if code == 2]
    assert "this run is being trained by job waiting/" in refusal
    assert status(run)["state"] == "SUCCEEDED"


def test_a_recommendation_to_leave_the_machine_is_a_checkpoint_more(course, monkeypatch):
    with metadata_server() as server:
        server.is_at_risk = True
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        words = [*small_words(2, steps=12, checkpoint__every=10, checkpoint__keep=9), "--name", "advised"]
        result = launch(*words, runs_dir=course.folder)
    assert result.returncode == 0, result.stderr
    assert [commit["step"] for commit in status(course.folder / "advised")["commits"]] == [1, 10, 12]
