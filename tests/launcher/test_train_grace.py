"""What an agent makes of its scheduler's answers."""

from __future__ import annotations

import math
import time

import pytest
from support.runs_for_tests import wait_for

from cluster.preemption import Mark, Notice
from launcher.runs import Attempt
from launcher.train.grace import Grace, leave_in_time

FAR = 3600.0  # this process would end then


@pytest.mark.parametrize("limit", [math.inf, 2 * FAR])
def test_a_preemption_that_the_scheduler_tells_of_a_moment_late_counts(tmp_path, limit):
    start = time.monotonic()
    before, after = Mark(start + limit, "the limit"), Mark(start + FAR, "preempted")
    answers = [before, before, after]
    notice = Notice(tmp_path / "notice")
    leave_in_time(Grace(notice, None), Attempt(tmp_path), lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    wait_for(lambda: notice.limit() is not None, "the first answer")
    notice.give("SIGTERM")
    wait_for(lambda: notice.end() is not None, "the second answer")
    assert notice.end().why == "preempted"
