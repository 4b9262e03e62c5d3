"""Up to three attempts of one run at once, in an order and with faults drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import mutants
from support.points import CountPoints
from support.schedules import run_schedules

from checkpoints.errors import CheckpointError

SCHEDULES = 40
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_the_invariants_hold_after_each_operation_of_any_schedule(part: int, count_points: CountPoints) -> None:
    size = SCHEDULES // PARTS
    count_points("schedules", run_schedules(range(part * size, (part + 1) * size)))


@pytest.mark.parametrize(
    "mutant",
    [mutants.no_exclusive, mutants.check_then_write, mutants.gc_before_claim, mutants.gc_any_epoch],
    ids=lambda mutant: mutant.__name__,
)
def test_schedules_find_the_mutant(mutant: Callable[[], mutants.Patch]) -> None:
    with mutant(), pytest.raises((AssertionError, CheckpointError)):
        run_schedules(range(SCHEDULES))
