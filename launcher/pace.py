"""How fast the ranks of an attempt are, by their own work, and which of them hold the others up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SLOWER_THAN_MEDIAN = 1.5


def duration(seconds: float | None) -> str:
    """As minutes and seconds, with hours where there are any; `-:--` while it is not known."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A rank's own work per step, without waiting for others: the median of its recent steps."""

    rank: int
    host: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that needs `ratio` times as long as the median rank."""

    rank: int
    host: str
    seconds: float
    ratio: float


def stragglers(paces: Iterable[Pace]) -> list[Straggler]:
    """Ranks that need more than 1.5 times the median, the slowest first.

    Of an even number of ranks the lower median counts: of two, a slow one is compared with the other.
    """
    paces = list(paces)
    if not paces:
        return []
    middle = sorted(pace.seconds for pace in paces)[(len(paces) - 1) // 2]
    found = [
        Straggler(rank=pace.rank, host=pace.host, seconds=pace.seconds, ratio=round(pace.seconds / middle, 2))
        for pace in paces
        if pace.seconds > SLOWER_THAN_MEDIAN * middle
    ]
    return sorted(found, key=lambda straggler: -straggler.ratio)
