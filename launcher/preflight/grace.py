"""Whether a run that is told to stop can save before it is ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.preflight.duration import Duration
from launcher.preflight.saves import Saves

LEAVING_SECONDS = 1.0  # before the end, so that nothing is left for whoever ends it by force


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """How long before the end a place says that it comes. setting: what changes that; None where nothing does."""

    place: str
    seconds: float
    setting: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Seconds that parts of a stop take at most.

    step: the one that was just begun. saving: until a save is durable; so long the last one may wait for one under way.
    copying: while training waits for a save. interval: of work between saves. bytes: of a checkpoint.
    """

    step: float
    copying: float
    saving: float
    interval: float
    bytes: int

    @property
    def needed(self) -> float:
        """A save that was just begun goes on during the step, and the last one follows it."""
        return max(self.step, self.saving) + self.copying + self.saving + LEAVING_SECONDS

    def is_met(self, notice: Notice) -> bool:
        return self.needed <= notice.seconds

    def lost(self, notice: Notice) -> float:
        """Seconds of work that are done again, in the worst case."""
        if self.is_met(notice):
            return 0.0
        last = self.copying + self.saving + LEAVING_SECONDS
        if self.step + last <= notice.seconds:  # only the wait for a save under way takes too long: it has just begun
            return self.saving + last - notice.seconds
        return self.interval + max(0.0, self.saving - notice.seconds)

    def remedy(self, notice: Notice) -> str:
        """What would make the notice long enough."""
        if notice.setting is not None:
            return f"use {notice.setting}={math.ceil(self.needed)}"
        left = notice.seconds - self.copying - LEAVING_SECONDS
        if left <= self.step:
            return "a step alone takes too long: use more nodes, or a smaller batch"
        speed = max(2 * self.bytes / left, self.bytes / (left - self.step)) / 1e9
        return f"storage of {math.ceil(10 * speed) / 10:g} GB/s would do, or fewer weights that train"

    def as_json(self, notices: tuple[Notice, ...]) -> dict[str, object]:
        places = [
            {
                "place": notice.place,
                "notice_seconds": notice.seconds,
                "is_enough": self.is_met(notice),
                "lost_seconds": self.lost(notice),
                "remedy": None if self.is_met(notice) else self.remedy(notice),
            }
            for notice in notices
        ]
        return {
            "needed_seconds": self.needed,
            "step_seconds": self.step,
            "copy_seconds": self.copying,
            "save_seconds": self.saving,
            "leaving_seconds": LEAVING_SECONDS,
            "places": places,
        }


def budget(saves: Saves, time: Duration) -> Budget:
    assert saves.interval_seconds is not None
    return Budget(
        step=time.step_seconds,
        copying=saves.blocked_seconds,
        saving=saves.save_seconds,
        interval=min(saves.interval_seconds, time.seconds),
        bytes=saves.bytes,
    )


ASSUMED = (
    "a stop comes as a step and a save have just begun; evaluation stops between micro-batches, and what a completion"
    " of evaluation.prompt takes is not counted"
)
