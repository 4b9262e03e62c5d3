"""Every storage operation of an attempt fails once, in every way: n = 1, 2, 3, ... until an attempt is not hit.

After each of them the same check: nothing that was acknowledged is lost, what is live is whole, the next attempt goes
on from it, and nothing is left lying about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.crash_points import (
    Medium,
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
from support.points import CountPoints
from support.saving import live

from checkpoints.posix_store import PosixStore
from checkpoints.reader import verify


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory where there is one: these tests are about what is done, not about how long a disk takes."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def media(kind: str, root: Path) -> Callable[[int], Medium]:
    """A fresh medium for each number."""
    return (lambda n: folder(root / str(n))) if kind == "folder" else lambda n: objects()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_whatever_operation_fails_nothing_is_lost(
    root: Path, kind: str, fault: Fault, keep: int, count_points: CountPoints
) -> None:
    count_points(f"{kind} {fault.name}", check_every_operation(media(kind, root), fault, keep))


@pytest.mark.parametrize("keep", [1, 2])
def test_when_the_power_fails_nothing_is_lost(root: Path, keep: int, count_points: CountPoints) -> None:
    count_points("folder UNSYNCED", check_every_power_failure(root, keep))


def test_when_the_power_fails_long_after_a_kill_nothing_is_lost(root: Path, count_points: CountPoints) -> None:
    count_points("folder KILLED, then UNSYNCED", check_every_power_failure_after_a_kill(root, keep=1))


def test_with_one_commit_kept_there_is_an_intact_one_after_every_single_operation(root: Path) -> None:
    class WatchedStore(FaultyStore):
        """Looks at the storage before each operation, as somebody would who pulls the plug there."""

        commits_seen = 0

        def _enter(self, operation: str, key: str) -> Fault | None:
            found = live(PosixStore(root))
            if found:
                self.commits_seen += 1
                verify(PosixStore(root), found[-1])
                assert [commit for commit in found if commit.is_verified] or len(found) <= 2
            else:
                assert self.commits_seen == 0
            return super()._enter(operation, key)

    store = WatchedStore(PosixStore(root))
    assert len(attempt(store, range(1, 8), keep=1)) == 7
    assert store.commits_seen > 30


@pytest.mark.parametrize("kind", ["folder", "objects"])
@pytest.mark.parametrize(
    "check",
    [
        check_outcome_that_never_becomes_known,
        check_damage_that_nobody_reports,
        check_damaged_manifests_that_nobody_reports,
        check_older_steps_after_newer_ones,
    ],
)
def test_in_special_cases_nothing_is_lost(root: Path, kind: str, check: Callable[[Medium], None]) -> None:
    check(media(kind, root)(1))


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_a_zombie_that_wakes_up_at_any_operation_harms_nobody(root: Path, kind: str, count_points: CountPoints) -> None:
    count_points(f"{kind} SLEPT", check_every_sleep(media(kind, root)))
