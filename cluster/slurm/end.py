"""When Slurm will end a job by force."""

from __future__ import annotations

import math
import time

from cluster.errors import ClusterError
from cluster.preemption import Mark
from cluster.slurm import queue

# A job that is out of time is not started again by Slurm: before that, tasks must leave and the batch script must ask.
_ASKING_SECONDS = 5.0
_NO_LIMIT = ("UNLIMITED", "365-00:00:00")  # of a job without a limit Slurm says this at times, and that at others


def end_of(job: str) -> Mark:
    """As the controller sees it now: the end of a preemption's grace, KillWait, or else the time limit.

    Infinite when there is none, and when Slurm does not answer.
    """
    now, epoch = time.monotonic(), time.time()
    try:
        found = queue.job_fields(job)
        end, preempted = found.get("EndTime", ""), found.get("PreemptTime", "")
        # Of a job without a limit Slurm may not know the end of the grace: then no more than this is counted on.
        is_ending = preempted.isdecimal() and not end.isdecimal()
        if found.get("JobState") != "RUNNING" or is_ending:  # or it is being requeued or cancelled
            kill_wait = queue.kill_wait_seconds()
            return Mark(now + kill_wait, f"Slurm's KillWait is {kill_wait} s")
    except ClusterError:
        return Mark(math.inf, "Slurm does not answer how long the job has")
    if preempted.isdecimal() and end.isdecimal():
        return Mark(now + int(end) - epoch, f"preempted with {int(end) - int(preempted)} s of grace")
    if found.get("TimeLimit") in _NO_LIMIT or not end.isdecimal():
        return Mark(math.inf, "the job has no time limit")
    seconds = int(end) - epoch
    return Mark(now + seconds - _ASKING_SECONDS, f"{seconds:.0f} s before the time limit")
