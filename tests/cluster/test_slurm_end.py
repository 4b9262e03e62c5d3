"""When a job ends: read from what scontrol prints, here by a script of that name that prints what Slurm 22.05 did."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.preemption import Mark
from cluster.slurm.end import end_of

End = Callable[[str], Mark]


@pytest.fixture
def end_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> End:
    """The end of a job of which scontrol says these words."""

    def end_when(words: str) -> Mark:
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(
            "#!/bin/sh\n"
            f"[ \"$1 $2\" != 'show job' ] || echo 'JobId=7 JobName=r {words} WorkDir=/x'\n"
            "[ \"$1 $2\" != 'show config' ] || printf 'KeepAliveTime = 9 sec\\nKillWait                = 30 sec\\n'\n"
            '[ "$SLURM_TIME_FORMAT" = %s ] || [ "$2" = config ]\n'
        )
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        return end_of("7")

    return end_when


def soon(seconds: float) -> int:
    return int(time.time() + seconds)


def test_a_preempted_job_has_the_grace_of_its_partition_or_qos(end_when):
    end = end_when(f"JobState=RUNNING TimeLimit=01:00:00 EndTime={soon(40)} PreemptTime={soon(40) - 60}")
    assert 30 < end.seconds_left() < 41
    assert end.why == "preempted with 60 s of grace"


def test_without_a_limit_a_preempted_job_has_an_end_all_the_same(end_when):
    end = end_when(f"JobState=RUNNING TimeLimit=UNLIMITED EndTime={soon(40)} PreemptTime={soon(40) - 60}")
    assert end.seconds_left() < 41


def test_a_preempted_job_whose_end_slurm_does_not_know_has_no_more_than_kill_wait(end_when):
    end = end_when(f"JobState=RUNNING TimeLimit=UNLIMITED EndTime=Unknown PreemptTime={soon(0)}")
    assert end.seconds_left() <= 30
    assert end.why == "Slurm's KillWait is 30 s"


def test_else_its_time_limit_counts_less_what_asking_for_the_next_start_takes(end_when):
    end = end_when(f"JobState=RUNNING TimeLimit=01:00:00 EndTime={soon(100)} PreemptTime=None")
    assert 85 < end.seconds_left() < 96
    assert end.why.endswith(" s before the time limit")


def test_a_job_that_is_requeued_or_cancelled_has_what_slurm_waits_before_it_kills(end_when):
    end = end_when("JobState=COMPLETING TimeLimit=01:00:00 EndTime=Unknown")
    assert 25 < end.seconds_left() <= 30
    assert end.why == "Slurm's KillWait is 30 s"


@pytest.mark.parametrize("end", ["Unknown", str(2**31)])
def test_a_job_without_a_limit_has_no_end(end_when, end):
    assert end_when(f"JobState=RUNNING TimeLimit=UNLIMITED EndTime={end} PreemptTime=None").at == math.inf


def test_a_year_is_how_slurm_says_that_there_is_no_limit(end_when):
    assert end_when(f"JobState=RUNNING TimeLimit=365-00:00:00 EndTime={soon(31536000)} PreemptTime=None").at == math.inf


def test_where_slurm_does_not_answer_no_end_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end_of("7") == Mark(math.inf, "Slurm does not answer how long the job has")
