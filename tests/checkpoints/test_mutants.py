"""The checks are checked: with each bug put into the real code, one of them fails, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import mutants
from support.crash_points import (
    attempt,
    check_damage_that_nobody_reports,
    check_damaged_manifests_that_nobody_reports,
    check_every_operation,
    check_every_power_failure,
    check_every_power_failure_after_a_kill,
    check_every_sleep,
    check_older_steps_after_newer_ones,
    check_outcome_that_never_becomes_known,
    folder,
    objects,
)
from support.faulty_store import Fault, FaultyStore

from checkpoints.errors import CheckpointError

Check = Callable[[Path], object]


def hit(fault: Fault) -> Check:
    return lambda _root: check_every_operation(lambda _n: objects(), fault, keep=1)


def hit_in_folder(fault: Fault) -> Check:
    return lambda root: check_every_operation(lambda n: folder(root / str(n)), fault, keep=1)


def sleep(_root: Path) -> None:
    check_every_sleep(lambda _n: objects())


def power_failure(root: Path) -> None:
    check_every_power_failure(root, keep=1)


def power_failure_after_a_kill(root: Path) -> None:
    check_every_power_failure_after_a_kill(root, keep=1)


CASES: dict[Callable[[], mutants.Patch], tuple[Check, str]] = {
    mutants.no_exclusive: (sleep, "does not follow the entry before it"),
    mutants.check_then_write: (sleep, "does not follow the entry before it"),
    mutants.delete_before_retire: (hit(Fault.KILLED_AFTER), "is missing"),
    mutants.retire_before_save: (hit(Fault.KILLED_BEFORE), "all commits are gone"),
    mutants.ack_before_commit: (hit(Fault.KILLED_BEFORE), "acknowledged commit is not in the log"),
    mutants.gc_before_claim: (sleep, "is missing"),
    mutants.gc_any_epoch: (sleep, "is missing"),
    mutants.cleanup_on_unknown: (lambda _root: check_outcome_that_never_becomes_known(objects()), "is missing"),
    mutants.resume_by_step_number: (lambda _root: check_older_steps_after_newer_ones(objects()), "from the newest"),
    mutants.pointer: (hit_in_folder(Fault.KILLED_BEFORE), "from the newest"),
    mutants.overwrite_attempt_dir: (sleep, "is missing|written twice"),
    mutants.keep_deletes_newest: (hit(Fault.KILLED_AFTER), "older than the newest acknowledged"),
    mutants.no_verify: (lambda _root: check_damage_that_nobody_reports(objects()), "no whole commit is live"),
    mutants.manifests_unread: (
        lambda _root: check_damaged_manifests_that_nobody_reports(objects()),
        "no whole commit is live",
    ),
    mutants.no_file_fsync: (power_failure, "log/.* not JSON"),
    mutants.no_dir_fsync: (power_failure, "not in the log"),
    mutants.no_fsync_of_a_folder_that_was_there: (power_failure_after_a_kill, "is missing"),
}


@pytest.mark.parametrize("mutant", CASES, ids=lambda mutant: mutant.__name__)
def test_a_check_fails_under_the_mutant(mutant: Callable[[], mutants.Patch]) -> None:
    check, reason = CASES[mutant]
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root, mutant():
        undisturbed = attempt(FaultyStore(objects()()), range(1, 4), keep=2)
        assert len(undisturbed) == 3, "without a fault the mutant must work: else it would be caught by anything"
        with pytest.raises((AssertionError, CheckpointError), match=reason):
            check(Path(root))
