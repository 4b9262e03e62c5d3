"""A sample of the campaigns that scripts/campaign runs at length."""

from __future__ import annotations

import signal

import pytest
from support.campaign import Course
from support.killing import Killer
from support.phases import SAVE, START_UP, STEP, Schedule
from support.preempting import CUT_OFF, MISSED, STOPPED, Case, Preempter

RANKS = 2


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return Course(tmp_path_factory.mktemp("campaign"), Schedule(steps=60, save_every=5, evaluate_every=12))


def test_kills_in_many_phases_change_nothing(course):
    story = Killer(course, "killed", RANKS, kills=3, seed="sample").run()
    assert not story.trouble
    assert story.kills


def test_stop_signals_in_many_phases_commit_and_change_nothing(course):
    cases = [
        Case(number=signal.SIGTERM, receiver="group", phase=START_UP),
        Case(number=signal.SIGUSR2, receiver="node", phase=SAVE),
        Case(number=signal.SIGHUP, receiver="group", phase=STEP, grace_seconds=0.03),
    ]
    results, trouble = Preempter(course, "stopped", RANKS, cases, seed="sample").run()
    assert not trouble
    assert [result.trouble for result in results] == [""] * len(results)
    assert results[0].outcome == STOPPED
    # On a busy machine a short phase may pass unseen.
    assert {result.outcome for result in results} <= {STOPPED, CUT_OFF, MISSED}
