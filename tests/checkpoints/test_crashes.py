"""Every storage operation of an attempt fails once, in every way: n = 1, 2, 3, ... until an attempt is not hit.

After each of them the same check: nothing that was acknowledged is lost, what is live is whole, the next attempt goes
on from it, and nothing is left lying about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.faulty_store import Crash, Fault, FaultyStore
from support.saving import assert_state, live, start

from checkpoints.entry import Commit
from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.posix_store import PosixStore
from checkpoints.reader import verify
from checkpoints.store import Created

MOST_OPERATIONS = 200


def attempt(store: FaultyStore, steps: range, keep: int) -> list[Commit]:
    """The commits that the attempt was told of, before it ended or died."""
    acknowledged = []
    with suppress(Crash, CheckpointError), closing(start(store, keep)) as alone:
        for step in steps:
            commit = alone.save(step).commit
            if commit is not None:
                acknowledged.append(commit)
    return acknowledged


def check(root: Path, acknowledged: list[Commit]) -> None:
    store = FaultyStore(root)
    entries, damage = CommitLog(store).history()
    assert not damage
    committed = {entry.live[-1].n for entry in entries if entry.kind.value == "COMMIT"}
    assert {commit.n for commit in acknowledged} <= committed, "an acknowledged commit is not in the log"
    found = live(store)
    assert found or not committed, "all commits are gone"
    for commit in found:
        verify(store, commit)
    newest = max((commit.n for commit in acknowledged), default=0)
    assert not found or found[-1].n >= newest, "the newest live commit is older than the newest acknowledged one"
    epochs = [entry.epoch for entry in entries]
    assert epochs == sorted(epochs)

    successor = start(store, keep=1)
    if found:
        assert successor.restored is not None
        assert successor.restored.commit.n == found[-1].n
        assert not successor.restored.skipped
        assert_state(successor.state, found[-1].step)
    for step in (100, 101, 102):
        assert successor.save(step).commit is not None
    successor.close()
    folders = {key.rpartition("/")[0] for key in store.list("data/")}
    assert folders == {commit.folder for commit in live(store)}, "something was left behind"


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory where there is one: these tests are about what is done, not about how long a disk takes."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("fault", Fault)
def test_whatever_operation_fails_nothing_is_lost(root: Path, fault: Fault, keep: int) -> None:
    for n in range(1, MOST_OPERATIONS):
        before = attempt(FaultyStore(root / str(n)), range(1, 3), keep)
        store = FaultyStore(root / str(n), fault, at=n)
        told = attempt(store, range(3, 6), keep)
        check(root / str(n), before + told)
        if store.operations < n:
            break
    assert 30 < n < MOST_OPERATIONS - 1, f"an attempt has {n} operations"


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

    store = WatchedStore(root)
    assert len(attempt(store, range(1, 8), keep=1)) == 7
    assert store.commits_seen > 30


class MuteStore(FaultyStore):
    """Stores log entries, and says nothing."""

    is_mute = False

    def create(self, key: str, data: bytes) -> Created:
        created = super().create(key, data)
        return Created.UNKNOWN if self.is_mute else created


def test_a_commit_whose_outcome_never_becomes_known_is_not_cleaned_up(root: Path) -> None:
    store = MuteStore(root)
    alone = start(store, log_seconds=0)
    store.is_mute = True
    result = alone.save(1)
    alone.close()
    assert result.commit is None
    assert "not known" in str(result.abort)
    (commit,) = live(FaultyStore(root))
    verify(FaultyStore(root), commit)


class SleepyStore(FaultyStore):
    """Before its n-th operation it sleeps, while a successor claims the run, commits, retires and ends."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.successors: list[Commit] = []
        self.wakes_at = at
        self._root_path = root

    def _enter(self, operation: str, key: str) -> Fault | None:
        if self.operations + 1 == self.wakes_at:
            self.successors = attempt(FaultyStore(self._root_path), range(50, 53), keep=1)
        return super()._enter(operation, key)


def test_a_zombie_that_wakes_up_at_any_operation_harms_nobody(root: Path) -> None:
    for n in range(1, MOST_OPERATIONS):
        before = attempt(FaultyStore(root / str(n)), range(1, 3), keep=1)
        store = SleepyStore(root / str(n), n)
        told = attempt(store, range(3, 6), keep=1)
        if store.operations < n:
            break
        assert len(store.successors) == 3
        check(root / str(n), before + store.successors + told)
    assert 30 < n < MOST_OPERATIONS - 1, f"an attempt has {n} operations"
