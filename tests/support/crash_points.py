"""Attempts that are hit by a fault at each of their operations in turn, and what must hold after each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from support.disk import Disk, Folder, Loss, copied, fingerprint, materialise
from support.faulty_store import Crash, Fault, FaultyStore
from support.object_store import ObjectStore
from support.saving import assert_state, live, start

from checkpoints.entry import Commit
from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.posix_store import PosixStore
from checkpoints.reader import verify
from checkpoints.store import Created, Store

MOST_OPERATIONS = 200

Medium = Callable[[], Store]  # what each new process opens


def folder(path: Path) -> Medium:
    return lambda: PosixStore(path)


def objects() -> Medium:
    bucket = ObjectStore()
    return lambda: bucket


def attempt(store: Store, steps: range, keep: int, acknowledged: list[Commit] | None = None) -> list[Commit]:
    """The commits that the attempt was told of, before it ended or died."""
    acknowledged = [] if acknowledged is None else acknowledged
    with suppress(Crash, CheckpointError), closing(start(store, keep)) as alone:
        for step in steps:
            commit = alone.save(step).commit
            if commit is not None:
                acknowledged.append(commit)
    return acknowledged


def check(medium: Medium, acknowledged: list[Commit]) -> None:
    """Nothing acknowledged is lost, what is live is whole, the next attempt goes on from it, nothing is left over."""
    store = FaultyStore(medium())
    entries, damage = CommitLog(store).history()
    assert not damage, str(damage[0])
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
    assert not (isinstance(store.inner, ObjectStore) and store.inner.overwritten), "a key was written twice"

    successor = start(store, keep=1)
    if found:
        assert successor.restored is not None, "the successor starts from nothing"
        assert successor.restored.commit.n == found[-1].n, "the successor does not start from the newest commit"
        assert not successor.restored.skipped
        assert_state(successor.state, found[-1].step)
    for step in (100, 101, 102):
        assert successor.save(step).commit is not None
    successor.close()
    folders = {key.rpartition("/")[0] for key in store.list("data/")}
    assert folders == {commit.folder for commit in live(store)}, "something was left behind"


def check_every_operation(media: Callable[[int], Medium], fault: Fault, keep: int) -> int:
    """Let operation n = 1, 2, 3, ... of an attempt fail, until one ends before its turn. The number of them."""
    for n in range(1, MOST_OPERATIONS):
        medium = media(n)
        before = attempt(FaultyStore(medium()), range(1, 3), keep)
        store = FaultyStore(medium(), fault, at=n)
        told = attempt(store, range(3, 6), keep)
        check(medium, before + told)
        if store.operations < n:
            return n - 1
    raise AssertionError(f"an attempt has more than {MOST_OPERATIONS} operations")


class SleepyStore(FaultyStore):
    """Before its n-th operation it sleeps, while a successor claims the run, commits, retires and ends."""

    def __init__(self, medium: Medium, at: int) -> None:
        super().__init__(medium())
        self.successors: list[Commit] = []
        self._medium = medium
        self._wakes_at = at

    def _enter(self, operation: str, key: str) -> Fault | None:
        if self.operations + 1 == self._wakes_at:
            self.successors = attempt(FaultyStore(self._medium()), range(3, 6), keep=1)
        return super()._enter(operation, key)


def check_every_sleep(media: Callable[[int], Medium]) -> int:
    """Let an attempt sleep before operation n = 1, 2, 3, ... The number of them."""
    for n in range(1, MOST_OPERATIONS):
        medium = media(n)
        before = attempt(FaultyStore(medium()), range(1, 3), keep=1)
        store = SleepyStore(medium, n)
        told = attempt(store, range(3, 6), keep=1)
        if store.operations < n:
            return n - 1
        assert len(store.successors) == 3, "the successor was disturbed"
        check(medium, before + store.successors + told)
    raise AssertionError(f"an attempt has more than {MOST_OPERATIONS} operations")


def check_older_steps_after_newer_ones(medium: Medium) -> None:
    """The newest commit is the last one of the log, though one of a later step is live, too."""
    told = attempt(FaultyStore(medium()), range(50, 52), keep=2)
    told += attempt(FaultyStore(medium()), range(1, 2), keep=2)
    assert {51, 1} <= {commit.step for commit in live(medium())}
    check(medium, told)


class MuteStore(FaultyStore):
    """Stores log entries, and says nothing."""

    is_mute = False

    def create(self, key: str, data: bytes) -> Created:
        created = super().create(key, data)
        return Created.UNKNOWN if self.is_mute else created


def check_outcome_that_never_becomes_known(medium: Medium) -> None:
    """The commit may exist, so nothing of it may be cleaned up."""
    store = MuteStore(medium())
    alone = start(store, log_seconds=0)
    store.is_mute = True
    result = alone.save(1)
    alone.close()
    assert result.commit is None
    assert "not known" in str(result.abort)
    (commit,) = live(medium())
    verify(medium(), commit)


class LyingStore(FaultyStore):
    """Says that it has put such files, and has put something else."""

    def __init__(self, inner: Store, is_lied_about: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self._is_lied_about = is_lied_about

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        data = bytearray(b"".join(blocks))
        if self._is_lied_about(key):
            data[len(data) // 2] ^= 1
        super().put(key, [memoryview(data)])


def check_damage_that_nobody_reports(medium: Medium, *, of_manifests: bool = False) -> None:
    """There is always a live commit that is whole, also with keep=1, and the next attempt finds it."""
    whole = attempt(FaultyStore(medium()), range(1, 3), keep=1)
    is_lied_about: Callable[[str], bool] = lambda key: key.endswith("/MANIFEST.json") == of_manifests  # noqa: E731
    attempt(LyingStore(medium(), is_lied_about), range(3, 6), keep=1)
    assert whole[-1] in [replace(commit, is_verified=False) for commit in live(medium())], "no whole commit is live"
    verify(medium(), whole[-1])
    successor = start(FaultyStore(medium()))
    assert successor.restored is not None
    assert successor.restored.commit.n == whole[-1].n
    successor.close()


def check_damaged_manifests_that_nobody_reports(medium: Medium) -> None:
    check_damage_that_nobody_reports(medium, of_manifests=True)


@dataclass(frozen=True)
class Moment:
    """A moment between two operations of the operating system."""

    tree: Folder
    acknowledged: list[Commit]


def moments(base: Path, tree: Folder, steps: range, keep: int) -> list[Moment]:
    """All moments of an attempt in the folder `base`, from before its first operation until after its last one."""
    found: list[Moment] = []
    told: list[Commit] = []
    disk = Disk(base, tree, lambda: found.append(Moment(copied(tree), list(told))))
    with disk.recording():
        attempt(FaultyStore(PosixStore(base / "run" / "checkpoints")), steps, keep, told)
    return [*found, Moment(tree, told)]


def check_losses(moment: Moment, base: Path) -> int:
    """Let the power fail at that moment, in each way. The number of different disks that were looked at."""
    seen = {fingerprint(moment.tree, loss): loss for loss in reversed(Loss)}
    for loss in seen.values():
        materialise(moment.tree, base / loss.name, loss)
        check(folder(base / loss.name / "run" / "checkpoints"), moment.acknowledged)
    return len(seen)


def check_every_power_failure(base: Path, keep: int) -> int:
    """Let the power fail before each operation of a run's first attempt. The number of disks that were looked at."""
    (base / "first").mkdir()
    found = moments(base / "first", Folder(), range(1, 4), keep)
    return sum(check_losses(moment, base / str(i)) for i, moment in enumerate(found))


def check_every_power_failure_after_a_kill(base: Path, keep: int) -> int:
    """Kill the first attempt before each operation, run a second one, and then let the power fail."""
    (base / "first").mkdir()
    points = 0
    for i, moment in enumerate(moments(base / "first", Folder(), range(1, 3), keep)):
        materialise(moment.tree, base / f"killed-{i}", None)
        last = moments(base / f"killed-{i}", moment.tree, range(3, 4), keep)[-1]
        points += check_losses(Moment(last.tree, moment.acknowledged + last.acknowledged), base / str(i))
    return points
