"""A place where a job ends at once. What its ranks would have left in the attempt's folder, a test leaves there."""

from __future__ import annotations

from collections.abc import Callable

from cluster.job import JobState, Situation, Submission
from cluster.local import LocalBackend
from launcher.runs import Attempt


class Nowhere(LocalBackend):
    """`leave` gets the attempt when it is submitted."""

    name = "nowhere"
    leave: Callable[[Attempt], None]

    def submit(self, submission: Submission) -> list[str]:
        type(self).leave(Attempt(submission.log.parents[1]))
        return ["gone"]

    def situation(self, handle: str) -> Situation:
        return Situation(state=JobState.ENDED)
