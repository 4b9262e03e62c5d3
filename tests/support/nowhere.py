"""A place where a job ends at once. What its ranks would have left in the attempt's folder, a test leaves there."""

from __future__ import annotations

import signal
from collections.abc import Callable

from cluster.job import Job, JobState, Submission
from launcher.runs import Attempt


class Nowhere:
    """A Backend. `leave` gets the attempt when it is submitted."""

    name = "nowhere"
    most_nodes = 1
    leave: Callable[[Attempt], None]

    def render(self, job: Job) -> Submission:
        return Submission(command=job.command, folder=job.folder, log=job.log, environment=job.environment)

    def submit(self, submission: Submission) -> str:
        type(self).leave(Attempt(submission.log.parents[1]))
        return "gone"

    def state(self, handle: str) -> JobState:
        return JobState.ENDED

    def stop(self, handle: str, number: signal.Signals) -> None:
        """There is nothing to stop."""

    def kill(self, handle: str) -> None:
        """There is nothing to end."""
