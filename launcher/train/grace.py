"""How long a run may go on after the notice to stop, where something ends it by force then."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass

from cluster.preemption import Notice
from launcher.runs import Attempt, Outcome

LEAVING_SECONDS = 1.0  # before the end, so that nothing is left for whoever ends it by force
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Grace:
    """`seconds` from the notice on; None where nothing but the run itself ends the run."""

    notice: Notice
    seconds: float | None

    def left(self) -> float:
        """Seconds until the run should be gone; infinite without a notice, or without an end."""
        given = self.notice.seconds_ago()
        return math.inf if self.seconds is None or given is None else self.seconds - LEAVING_SECONDS - given


def leave_in_time(grace: Grace, attempt: Attempt) -> None:
    """End this process, and with it the ranks that it started, when the grace is over, whatever they do then."""
    if grace.seconds is None:
        return

    def leave() -> None:
        while grace.left() > 0:
            time.sleep(_LOOK_SECONDS)
        if attempt.outcome() is None:
            cause = f"{grace.notice.reason()}; the {grace.seconds:g} s of grace ended first"
            attempt.write_outcome(Outcome(state="PREEMPTED", cause=cause, exit_code=75))
        os._exit(75)

    threading.Thread(target=leave, name="grace", daemon=True).start()
