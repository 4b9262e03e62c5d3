"""The preemption campaign: stop signals to one process or to all, in every phase, again and again on one run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from support.campaign import Course, Disturbed, Trouble, newest_commit_step
from support.phases import START_UP
from support.runs_for_tests import status

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
RECEIVERS = ("rank", "node", "group")
# What may come out instead of 75: the run was about to end anyhow.
GRACE_SECONDS = 30.0  # several times what a stop takes here
MISSED, STOPPED, DONE, CUT_OFF = "missed", "75", "0", "cut off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`grace_seconds`: everything is killed that long after the signal; None leaves it the time that it was told."""

    number: signal.Signals
    receiver: str
    phase: str
    workers: int = 0
    grace_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcome` is what the launcher ended with, or `missed` when the run was past the phase too soon."""

    case: Case
    outcome: str
    step: int = 0
    seconds: float = 0.0
    trouble: str = ""


class Preempter:
    """One run, stopped by each of the cases in turn and then finished. All cases have the same data workers."""

    def __init__(self, course: Course, name: str, ranks: int, cases: Sequence[Case], seed: str) -> None:
        changed = {"data__workers": cases[0].workers}
        flags = ("--grace-seconds", f"{GRACE_SECONDS:.0f}")
        self._disturbed = Disturbed(course, name, ranks, changed=changed, flags=flags)
        self._cases = cases
        self._random = random.Random(seed)
        self._sent_after = 0  # the step that was completed when the last signal was sent

    def run(self) -> tuple[list[Result], str]:
        """What came of each case, and what is wrong with the ending of the run; nothing if that is empty."""
        results: list[Result] = []
        try:
            for case in self._cases:
                results.append(self._stop(case))
                if results[-1].outcome in (DONE, MISSED):
                    break
            self._disturbed.finish()
            self._disturbed.check_ending()
        except Trouble as trouble:
            return results, str(trouble)
        finally:
            self._disturbed.give_up()
        return results, ""

    def _stop(self, case: Case) -> Result:
        started = time.time()
        launcher = self._disturbed.launch()
        if self._disturbed.wait(lambda: self._try_to_send(case, started), str(case)) == MISSED:
            return Result(case=case, outcome=MISSED)
        sent = time.time()
        if case.grace_seconds is not None:
            time.sleep(case.grace_seconds)
            if launcher.poll() is None:
                self._disturbed.kill_everything(self._random)
                self._disturbed.check_commits()
                return Result(case=case, outcome=CUT_OFF, step=newest_commit_step(self._disturbed.run))
        code = self._disturbed.wait_for_end()
        step, seconds = newest_commit_step(self._disturbed.run), time.time() - sent
        trouble = self._judge(code, step)
        if not trouble and seconds > GRACE_SECONDS:
            trouble = f"it ended {seconds:.1f} s after the signal, and its grace was {GRACE_SECONDS:.0f} s"
        return Result(case=case, outcome=str(code), step=step, seconds=seconds, trouble=trouble)

    def _try_to_send(self, case: Case, started: float) -> str:
        """Whether the signal was sent in the phase, or the phase was missed; nothing while neither is decided."""
        if self._disturbed.launcher.poll() is not None:
            return MISSED
        moment = self._disturbed.look()
        if moment.since <= started or moment.phase != case.phase:
            return ""
        if case.phase == START_UP:
            time.sleep(self._random.uniform(0, 0.5))
        receivers = self._disturbed.processes().get("node" if case.receiver == "group" else case.receiver)
        if not receivers or self._disturbed.look().phase != case.phase:
            return ""
        try:
            self._sent_after = moment.step
            (os.killpg if case.receiver == "group" else os.kill)(self._random.choice(receivers), case.number)
        except ProcessLookupError:
            return ""
        return "sent"

    def _judge(self, code: int, step: int) -> str:
        """What is wrong with how the launcher ended; nothing if that is empty."""
        if code == 0:
            is_at_end = self._sent_after == self._disturbed.course.schedule.steps
            return "" if is_at_end else "the signal was lost: the run went on to its end"
        if code != 75:
            return f"exit code {code}: {self._disturbed.launcher.communicate()[1][-2000:]}"
        state = status(self._disturbed.run)
        if state["step"] != step:
            return f"stopped after step {state['step']}, but the newest commit is of step {step}"
        self._disturbed.check_commits()
        return ""
