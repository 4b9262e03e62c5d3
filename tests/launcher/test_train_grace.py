"""How long a run may go on, by what a person has said or a scheduler has answered."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest

from cluster.preemption import Mark, Notice
from launcher.train.grace import LEAVING_SECONDS, Grace


@pytest.fixture
def notice(tmp_path: Path) -> Notice:
    return Notice(tmp_path / "notice")


def soon(seconds: float, why: str = "why") -> Mark:
    return Mark(time.monotonic() + seconds, why)


def test_without_a_notice_nothing_ends(notice):
    notice.set_limit(soon(30))
    assert Grace(notice, seconds=10).left() == math.inf
    assert 25 < Grace(notice, seconds=None).left_to_limit() < 30


def test_where_no_scheduler_is_asked_a_notice_has_no_end(notice):
    notice.give("SIGTERM")
    assert Grace(notice, seconds=None).left() == math.inf
    assert notice.reason() == "SIGTERM"


def test_what_a_person_has_said_wins_over_the_scheduler(notice):
    notice.set_limit(soon(1000))
    notice.set_end(soon(20))
    notice.give("SIGTERM")
    assert 95 < Grace(notice, seconds=100).left() <= 100 - LEAVING_SECONDS


def test_after_the_notice_the_answer_of_the_scheduler_is_waited_for(notice):
    notice.set_limit(soon(1000))
    notice.give("SIGTERM")
    answer = threading.Timer(0.2, notice.set_end, [soon(20, "preempted with 20 s of grace")])
    answer.start()
    assert 10 < Grace(notice, seconds=None).left() < 20
    answer.join()
    assert notice.reason() == "SIGTERM (preempted with 20 s of grace)"


def test_a_start_is_out_of_time_when_its_end_is_the_limit(notice):
    grace = Grace(notice, seconds=None)
    notice.set_limit(soon(100))
    assert not grace.is_out_of_time()
    notice.give("SIGUSR2")
    notice.set_end(soon(100))
    assert grace.is_out_of_time()


def test_a_preempted_start_is_not_out_of_time(notice):
    notice.set_limit(soon(100))
    notice.give("SIGTERM")
    notice.set_end(soon(20))
    assert not Grace(notice, seconds=None).is_out_of_time()


def test_a_start_without_a_limit_is_never_out_of_time(notice):
    notice.set_limit(Mark(math.inf, "the job has no time limit"))
    notice.give("SIGUSR2")
    notice.set_end(Mark(math.inf, "the job has no time limit"))
    assert not Grace(notice, seconds=None).is_out_of_time()
