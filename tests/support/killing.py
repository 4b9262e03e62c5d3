"""The kill campaign: SIGKILL at seeded moments in all phases of many small runs."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field

from support.campaign import HANG_SECONDS, POLL_SECONDS, Course, Disturbed, Trouble, commit_count
from support.phases import EVALUATION, EXIT, FIRST_STEP, LAST_STEP, SAVE, START_UP, STEP, Moment

KINDS = {"rank": 8, "node": 1, "everything": 1}  # with how often each is chosen
_PHASES = {START_UP: 4, FIRST_STEP: 2, STEP: 4, SAVE: 4, EVALUATION: 3}
_PHASES_OF_THE_END = {LAST_STEP: 1, EVALUATION: 1, EXIT: 2}
KILLS_AT_THE_END = 3
# The launcher gives up after four restarts in a row without a commit, and is right to: the run would get nowhere.
FRUITLESS_IN_A_ROW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    kind: str
    phase: str
    step: int
    at: float


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened to one run. `trouble` is empty when it ended as it must."""

    name: str
    seed: str
    ranks: int
    kills: list[Kill] = field(default_factory=list)
    recovery_seconds: list[tuple[str, float]] = field(default_factory=list)
    resumes: int = 0
    trouble: str = ""
    trouble_kind: str = ""


class Killer:
    """Kills one run, several times."""

    def __init__(self, course: Course, name: str, ranks: int, kills: int, seed: str) -> None:
        self.story = Story(name=name, seed=seed, ranks=ranks)
        self._disturbed = Disturbed(course, name, ranks)
        self._random = random.Random(seed)
        self._kills = kills
        self._recovering: Kill | None = None
        self._victims: tuple[float, list[int]] = (-1.0, [])
        self._commits = self._fruitless = 0

    def run(self) -> Story:
        try:
            self._until_done()
            self._disturbed.check_ending()
        except Trouble as trouble:
            self.story.trouble, self.story.trouble_kind = str(trouble), trouble.kind
        finally:
            self._disturbed.give_up()
        return self.story

    def _until_done(self) -> None:
        self._disturbed.launch()
        kind, phase = self._choose()
        changed = time.monotonic()
        last = None
        while True:
            moment = self._disturbed.look()
            if moment != last:
                last, changed = moment, time.monotonic()
            if time.monotonic() - changed > HANG_SECONDS:
                raise Trouble("hang", f"nothing new for {HANG_SECONDS:.0f} s at {moment} after {self.story.kills[-1:]}")
            self._note_recovery(moment)
            code = self._disturbed.launcher.poll()
            if code == 0:
                return
            if code is not None:
                raise self._disturbed.crash()
            if phase in (START_UP, FIRST_STEP) and moment.phase in (STEP, SAVE):  # too late for it
                kind, phase = self._choose()
            if moment.phase == phase and self._may_kill(moment) and self._kill(kind, phase):
                kind, phase = self._choose()
                changed = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _choose(self) -> tuple[str, str]:
        left = self._kills - len(self.story.kills)
        phases = _PHASES if left > min(KILLS_AT_THE_END, self._kills // 2) else _PHASES_OF_THE_END
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        return kind, self._random.choices(list(phases), list(phases.values()))[0]

    def _may_kill(self, moment: Moment) -> bool:
        """Not before the ranks were started again after the kill before, and not more often than helps anybody."""
        if len(self.story.kills) >= self._kills:
            return False
        if self.story.kills and moment.since <= self.story.kills[-1].at:
            return False
        return self._fruitless < FRUITLESS_IN_A_ROW or commit_count(self._disturbed.run) > self._commits

    def _kill(self, kind: str, phase: str) -> bool:
        """Whether something was killed: somewhere in the phase, not always at its beginning."""
        time.sleep(self._random.uniform(0, 1.5 if phase == START_UP else 0.03))
        moment = self._disturbed.look()
        victims = self._find(kind, moment)
        moment = self._disturbed.look()
        if not victims or not self._may_kill(moment) or self._disturbed.launcher.poll() is not None:
            return False
        commits = commit_count(self._disturbed.run)
        kill = Kill(kind=kind, phase=moment.phase, step=moment.step, at=time.time())
        if kind == "everything":
            self._disturbed.kill_everything(self._random)
        else:
            try:
                os.kill(self._random.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                return False
        self._fruitless = self._fruitless + 1 if commits == self._commits else 0
        self._commits = commits
        self.story.kills.append(kill)
        self._recovering = kill
        if kind == "everything":
            self._disturbed.check_commits()
            self._disturbed.launch()
            self.story.resumes += 1
        return True

    def _find(self, kind: str, moment: Moment) -> list[int]:
        if kind == "everything":
            return [self._disturbed.launcher.pid]
        if kind == "node":
            return self._disturbed.processes().get("node", [])
        known, victims = self._victims
        if known != moment.since or len(victims) < self._disturbed.ranks:
            victims = self._disturbed.processes().get("rank", [])
            self._victims = (moment.since, victims)
        return victims

    def _note_recovery(self, moment: Moment) -> None:
        kill = self._recovering
        if kill and moment.since > kill.at and moment.phase not in (START_UP, EXIT) and moment.step > 0:
            self.story.recovery_seconds.append((kill.kind, time.time() - kill.at))
            self._recovering = None
