"""How often runs are interrupted, how often to save because of that, and what it costs in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SECONDS_PER_HOUR = 3600
_GPU_HOURS_PER_FAILURE = 50_000
_MOST_HOURS = 7 * 24
_RESTART_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """seconds: between interruptions of the whole run, on average."""

    seconds: float
    assumption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Of a whole run. lost_seconds: of work by one interruption, until the run is again where it was.

    seconds: with saves and with what is done again; None where a run that is interrupted so often gets nowhere.
    """

    interruptions: float | None
    lost_seconds: float
    seconds: float | None


def failures(*, nodes: int, ranks: int, node_hours: float | None) -> Failures:
    """node_hours: between interruptions of one node, if somebody knows it."""
    if node_hours is not None:
        reason = f"a node is interrupted every {node_hours:g} h (as given)"
        return Failures(seconds=node_hours * _SECONDS_PER_HOUR / nodes, assumption=reason)
    hours = min(_GPU_HOURS_PER_FAILURE / ranks, _MOST_HOURS)
    reason = (
        f"one interruption per {_GPU_HOURS_PER_FAILURE:,} GPU-hours, as Llama 3 405B was trained, and one a week at"
        " least; spot machines have far more: --mtbf-hours says so"
    )
    return Failures(seconds=hours * _SECONDS_PER_HOUR, assumption=reason)


def best_interval(cost_seconds: float, durable_seconds: float, failure_seconds: float) -> float:
    """Seconds of work between saves that lose least; a save that has begun ends before the next one begins."""
    return max(daly_interval(cost_seconds, failure_seconds), durable_seconds)


def daly_interval(cost_seconds: float, failure_seconds: float) -> float:
    """Seconds of work between saves that lose least, when a save costs so much and failures come so often.

    Young 1974, Daly 2006.
    """
    if cost_seconds >= 2 * failure_seconds:
        return failure_seconds
    ratio = cost_seconds / (2 * failure_seconds)
    return math.sqrt(2 * cost_seconds * failure_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_seconds


def expect(work_seconds: float, *, interval_seconds: float, blocked_seconds: float, failure_seconds: float) -> Expected:
    """What interruptions without any notice make of so much work, with a save after each interval."""
    rounds = max(1.0, work_seconds / interval_seconds)
    undisturbed = work_seconds + rounds * blocked_seconds
    lost = min(interval_seconds, work_seconds) / 2 + _RESTART_SECONDS
    if lost >= failure_seconds:
        return Expected(interruptions=None, lost_seconds=lost, seconds=None)
    seconds = undisturbed / (1 - lost / failure_seconds)
    return Expected(interruptions=seconds / failure_seconds, lost_seconds=lost, seconds=seconds)


EXPECTED = (
    f"after an interruption half an interval is done again, and {_RESTART_SECONDS} s pass until training goes on;"
    " the wait for another machine is not in it"
)
