"""How long a run may go on, where something ends it by force."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.preemption import Mark, Notice
from launcher.preflight.grace import LEAVING_SECONDS
from launcher.runs import PREEMPTED_CODE, Attempt, Outcome
from launcher.terminal import say

_LOOK_SECONDS = 0.1
_SAME_SECONDS = 2.0  # schedulers tell whole seconds
_ANSWER_SECONDS = 12.0  # the agent asks twice at most


@dataclass(frozen=True, slots=True)
class Grace:
    """`seconds` from the notice on, if a person has said so; None leaves it to the scheduler, where there is one."""

    notice: Notice
    seconds: float | None

    def left(self) -> float:
        """Seconds until the run should be gone; infinite without a notice, or without an end."""
        given = self.notice.seconds_ago()
        if given is None:
            return math.inf
        if self.seconds is not None:
            return self.seconds - LEAVING_SECONDS - given
        end = self._end()
        return math.inf if end is None else end.seconds_left() - LEAVING_SECONDS

    def left_to_limit(self) -> float:
        """Seconds until the run should be gone if nobody asks it to stop; infinite where it has no limit."""
        limit = self.notice.limit()
        return math.inf if limit is None else limit.seconds_left() - LEAVING_SECONDS

    def is_out_of_time(self) -> bool:
        """Whether the end is the time limit: after the notice the scheduler has told the same as before it."""
        limit, end = self.notice.limit(), self._end() if self.notice.is_given() else None
        return limit is not None and end is not None and abs(limit.at - end.at) < _SAME_SECONDS

    def _end(self) -> Mark | None:
        """What the agent was told by the scheduler, for which it needs a moment; None where there is no scheduler."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (end := self.notice.end()) is None and self.notice.limit() is not None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 10)
        return end


def leave_in_time(grace: Grace, attempt: Attempt, ask: Callable[[], Mark] | None) -> None:
    """End this process, and with it the ranks that it started, when the grace is over, whatever they do then.

    ask: the scheduler's answer to when it ends the job; None where there is none, or another node's agent asks.
    """
    if grace.seconds is None and ask is None:
        return
    notice = grace.notice

    def leave() -> None:
        if ask is not None:
            notice.set_limit(ask())
        while not notice.is_given():
            time.sleep(_LOOK_SECONDS)
        if ask is not None and grace.seconds is None:
            notice.set_end(ask())
            say(f"{notice.reason()}: saving if there is time, then leaving")
        while grace.left() > 0:
            time.sleep(_LOOK_SECONDS)
        if attempt.outcome() is None:
            time_given = "this time" if grace.seconds is None else f"the {grace.seconds:g} s of grace"
            cause = f"{notice.reason()}; {time_given} ended first"
            is_out_of_time = grace.is_out_of_time()
            attempt.write_outcome(
                Outcome(state="PREEMPTED", cause=cause, exit_code=PREEMPTED_CODE, is_out_of_time=is_out_of_time)
            )
        os._exit(PREEMPTED_CODE)

    threading.Thread(target=leave, name="grace", daemon=True).start()
