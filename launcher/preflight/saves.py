"""What checkpoints cost, and how often one is worth it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.preflight.interruptions import Failures, best_interval
from launcher.preflight.spread import checkpoint_bytes
from launcher.preflight.workload import Workload

STORE_BYTES_PER_SECOND = 1e9
_STAGING_BYTES_PER_SECOND = 10e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Saves:
    """save_seconds: until a checkpoint is durable. blocked_seconds: training stands still.

    interval_seconds: of work between saves, as the recipe has them; one that falls due while another is under way is
    skipped. best_seconds, best_every: what loses least, in seconds and in steps. What needs the time of a step is None
    where that is not known.
    """

    bytes: int
    save_seconds: float
    blocked_seconds: float
    failure_seconds: float
    interval_seconds: float | None
    best_seconds: float
    best_every: int | None
    assumptions: tuple[str, ...]


def seconds_of_save(size: float, ranks: int, store_speed: float | None = None) -> tuple[float, float]:
    """(until `size` bytes are durable, of which training stands still), where nothing was measured."""
    return size / (store_speed or STORE_BYTES_PER_SECOND), size / ranks / _STAGING_BYTES_PER_SECOND


def saves(
    work: Workload,
    step_seconds: float | None,
    steps: int,
    *,
    every: int | str,
    failures: Failures,
    store_speed: float | None = None,
) -> Saves:
    """every: `checkpoint.every` of the recipe. store_speed: bytes per second of all ranks together, if known."""
    size = checkpoint_bytes(work)
    durable, blocked = seconds_of_save(size, work.ranks, store_speed)
    best = best_interval(blocked, durable, failures.seconds)
    best_every = None if step_seconds is None else min(steps, max(1, math.ceil(best / step_seconds)))
    own = None if step_seconds is None or isinstance(every, str) else max(durable, every * step_seconds)
    speed, reason = (store_speed, "as given") if store_speed else (STORE_BYTES_PER_SECOND, "set it with --store-speed")
    return Saves(
        bytes=size,
        save_seconds=durable,
        blocked_seconds=blocked,
        failure_seconds=failures.seconds,
        interval_seconds=best if every == "auto" else own,
        best_seconds=best,
        best_every=best_every,
        assumptions=(
            f"storage takes {speed / 1e9:g} GB/s from all ranks together ({reason}); "
            f"a GPU's copy to the host {_STAGING_BYTES_PER_SECOND / 1e9:g} GB/s",
            failures.assumption,
        ),
    )
