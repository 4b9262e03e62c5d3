"""Up to three attempts of one run at once, in an order and with troubles that Hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase
from support import mutants
from support.points import CountPoints
from support.state_machine import run

EXAMPLES = 60
MOST_EXAMPLES = 150  # until a mutant is found
MUTANTS: dict[Callable[[], mutants.Patch], str] = {
    mutants.no_exclusive: "write-once|fenced|friendly fire",
    mutants.check_then_write: "write-once|fenced|friendly fire",
    mutants.gc_before_claim: "friendly fire",
    mutants.gc_any_epoch: "friendly fire",
    mutants.delete_before_retire: "friendly fire",
    mutants.retire_before_save: "never empty",
    mutants.ack_before_commit: "durable",
    mutants.keep_deletes_newest: "durable",
    mutants.no_verify: "durable|never empty|pinned",
    mutants.overwrite_attempt_dir: "write-once",
    mutants.keep_counts_copies_on_disks: "durable|never empty",
    mutants.copies_are_trusted: "is not that of step",
    mutants.stored_before_it_is: "whole: .* is missing",
    mutants.pointer: "durable|hint-free",
    mutants.one_rank_decides: "agree",
    mutants.unpickles: "inert",
}


def test_the_invariants_hold_after_each_operation_of_any_schedule(count_points: CountPoints) -> None:
    count_points("state machine", run(EXAMPLES))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_state_machine_finds_the_mutant(mutant: Callable[[], mutants.Patch]) -> None:
    with mutant(), pytest.raises(AssertionError, match=MUTANTS[mutant]):
        run(MOST_EXAMPLES, derandomize=True, phases=[Phase.generate])
