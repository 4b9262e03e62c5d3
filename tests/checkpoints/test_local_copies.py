"""Commits that are on the disks of nodes first, and are copied to the store from there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support.faulty_store import FaultyStore
from support.saving import SECONDS, Alone, assert_state, live, start

from checkpoints.entry import Kind
from checkpoints.errors import CheckpointError, StoreError, StoreFull
from checkpoints.log import CommitLog
from checkpoints.memory_store import MemoryStore
from checkpoints.owner import host_name
from checkpoints.policy import LOCAL_COPIES
from checkpoints.posix_store import PosixStore
from checkpoints.reader import verify
from checkpoints.store import open_copies
from checkpoints.writer import WriterProcess


class NoUploads(FaultyStore):
    """A store that takes no file of a rank any more, once it has one."""

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        if key.endswith(".bin") and any(there.endswith(".bin") for there in self.list("data/")):
            raise StoreError("put", key, "the network is gone")
        super().put(key, blocks)


class FailingUploads(FaultyStore):
    """A store that takes saves, and nothing of what is on the disk."""

    def __init__(self, disk: MemoryStore) -> None:
        super().__init__(MemoryStore())
        self.disk = disk

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        if key in self.disk.list("data/"):
            raise StoreError("put", key, "the network is gone")
        super().put(key, blocks)


class Damaging(FaultyStore):
    """Keeps something else than it is given under keys with that end, from the time on that it is set."""

    end = "nothing"

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        data = b"".join(blocks)
        super().put(key, [memoryview(flip(data) if key.endswith(self.end) else data)])


class CountedReads(FaultyStore):
    """Remembers the files of ranks that were read."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.read: list[str] = []

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key.endswith(".bin"):
            self.read.append(key)
        return super().get(key, start, length)


def saved(store: FaultyStore | MemoryStore, copies: FaultyStore | MemoryStore, steps: range, keep: int = 2) -> Alone:
    alone = start(store, keep, copies=copies)
    for step in steps:
        assert alone.save(step).commit is not None
    alone.close()
    return alone


def folders(store: FaultyStore | MemoryStore) -> set[str]:
    return {key.rpartition("/")[0] for key in store.list("data/")}


def test_a_commit_is_on_the_disk_first_and_then_in_the_store_and_the_log_says_both() -> None:
    store, copies = MemoryStore(), MemoryStore()
    saved(store, copies, range(1, 3))
    entries, damage = CommitLog(store).history()
    assert not damage
    kinds = [entry.kind for entry in entries]
    assert kinds == [Kind.CLAIM, Kind.COMMIT, Kind.COMMIT, Kind.STORED]
    before, after = entries[2].live[-1], entries[3].live[-1]
    assert (before.hosts, before.is_stored, before.is_verified) == ((host_name(),), False, False)
    assert (after.hosts, after.is_stored, after.is_verified) == ((host_name(),), True, False)
    assert [entry.commits for entry in entries] == [0, 1, 1, 2]
    verify(store, after)


def test_the_first_commit_and_one_that_must_not_be_lost_go_to_the_store() -> None:
    alone = start(NoUploads(MemoryStore()), copies=MemoryStore())
    first, second = alone.save(1).commit, alone.save(2).commit
    assert first is not None
    assert second is not None
    assert (first.is_stored, first.hosts, second.is_stored) == (True, (), False)
    result = alone.save(3, to_store=True)
    assert "the network is gone" in str(result.abort)
    third = alone.save(4).commit
    assert third is not None
    assert not third.is_stored  # that the store has failed is no reason not to trust the disk
    alone.close()


def test_a_restart_reads_what_its_disk_has_and_the_rest_from_the_store() -> None:
    bucket, copies = MemoryStore(), MemoryStore()
    saved(bucket, copies, range(1, 4))
    counted = CountedReads(bucket)
    again = start(counted, copies=copies)
    assert_state(again.state, 3)
    assert counted.read == []
    again.close()
    elsewhere = start(counted, copies=MemoryStore())
    assert_state(elsewhere.state, 3)
    assert counted.read != []
    elsewhere.close()


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize(
    "damaged", [flip, lambda data: data[:-4096], lambda data: b""], ids=["flipped", "torn", "empty"]
)
def test_a_damaged_copy_is_not_used(damaged: Callable[[bytes], bytes]) -> None:
    bucket, copies = MemoryStore(), MemoryStore()
    saved(bucket, copies, range(1, 4))
    for key in copies.list("data/"):
        copies.put(key, [memoryview(damaged(copies.get(key)))])
    again = start(bucket, copies=copies)
    assert again.restored is not None
    assert again.restored.skipped == {}
    assert_state(again.state, 3)
    again.close()


def test_without_the_store_a_restart_goes_on_from_the_disk_and_another_machine_from_what_is_stored() -> None:
    bucket, copies = NoUploads(MemoryStore()), MemoryStore()
    saved(bucket, copies, range(1, 4))
    here = start(bucket, copies=copies)
    assert here.restored is not None
    assert here.restored.commit.step == 3
    assert_state(here.state, 3)
    here.close()

    elsewhere = start(bucket, copies=MemoryStore())
    assert elsewhere.restored is not None
    assert elsewhere.restored.commit.step == 1
    assert_state(elsewhere.state, 1)
    reasons = list(elsewhere.restored.skipped.values())
    assert f"it had not reached the store, and was on the disk of {host_name()} alone" in reasons[0]
    elsewhere.close()


def test_a_damaged_copy_of_what_is_not_stored_is_passed_over() -> None:
    bucket, copies = NoUploads(MemoryStore()), MemoryStore()
    saved(bucket, copies, range(1, 4))
    newest = live(bucket)[-1]
    (key,) = copies.list(f"{newest.folder}/")
    copies.put(key, [memoryview(flip(copies.get(key)))])
    again = start(bucket, copies=copies)
    assert again.restored is not None
    assert (again.restored.commit.step, list(again.restored.skipped)) == (2, [newest.n])
    assert_state(again.state, 2)
    again.close()


def test_commits_on_disks_alone_retire_none_in_the_store_and_do_not_pile_up() -> None:
    copies = MemoryStore()
    bucket = FailingUploads(copies)
    alone = start(bucket, 1, copies=copies)
    most = 0
    for step in range(1, 5):
        assert alone.save(step).commit is not None
        most = max(most, len(folders(copies)))
    alone.close()
    assert [(commit.step, commit.is_stored) for commit in live(bucket)] == [(1, True), (3, False), (4, False)]
    assert most <= LOCAL_COPIES + 2
    failures = [upload.failure for upload in alone.saver.poll_uploads()]
    assert len(failures) == 3
    assert "the network is gone" in failures[0]


def where_saves_go(alone: Alone, steps: range) -> list[str]:
    results = [alone.save(step).commit for step in steps]
    return ["aborted" if commit is None else "store" if commit.is_stored else "disk" for commit in results]


def test_when_copies_keep_failing_the_next_save_goes_to_the_store() -> None:
    copies = MemoryStore()
    alone = start(FailingUploads(copies), copies=copies)
    assert where_saves_go(alone, range(1, 10)) == ["store", *["disk"] * 3, "store", *["disk"] * 3, "store"]
    alone.close()


def test_when_a_disk_keeps_something_else_than_it_was_given_saves_go_to_the_store() -> None:
    copies = Damaging(MemoryStore())
    copies.end = ".bin"
    alone = start(MemoryStore(), 1, copies=copies)
    assert where_saves_go(alone, range(1, 8)) == ["store", *["disk", "disk", "store"] * 2]
    alone.close()
    assert [commit.step for commit in live(alone.store) if commit.is_stored] == [4, 7]
    uploads = alone.saver.poll_uploads()
    assert all("has the wrong digest" in upload.failure for upload in uploads)


def test_when_what_is_in_the_store_is_damaged_a_later_save_goes_there() -> None:
    bucket = Damaging(MemoryStore())
    bucket.end = ".bin"
    alone = start(bucket, copies=MemoryStore())
    assert where_saves_go(alone, range(1, 2)) == ["store"]
    bucket.end = "nothing"
    assert where_saves_go(alone, range(2, 5)) == ["disk", "store", "disk"]
    alone.close()


def test_what_has_a_damaged_manifest_is_not_said_to_be_in_the_store_and_nothing_goes_for_it() -> None:
    bucket = Damaging(MemoryStore())
    alone = start(bucket, 1, copies=MemoryStore())
    assert where_saves_go(alone, range(1, 2)) == ["store"]
    bucket.end = "MANIFEST.json"
    assert where_saves_go(alone, range(2, 4)) == ["disk", "disk"]
    alone.close()
    assert [upload.failure != "" for upload in alone.saver.poll_uploads()] == [True, True]
    elsewhere = start(bucket, 1, copies=MemoryStore())
    assert elsewhere.restored is not None
    assert elsewhere.restored.commit.step == 1
    elsewhere.close()


@pytest.mark.parametrize("is_lost", [False, True])
def test_the_first_save_after_a_start_from_a_disk_alone_or_without_what_it_had_goes_to_the_store(is_lost: bool) -> None:
    copies = MemoryStore()
    bucket = FailingUploads(copies)
    saved(bucket, copies, range(1, 3))
    again = start(bucket, copies=MemoryStore() if is_lost else copies)
    assert again.restored is not None
    assert again.restored.commit.is_stored is is_lost
    assert where_saves_go(again, range(3, 5)) == ["store", "disk"]
    again.close()


def test_a_run_that_has_ended_leaves_nothing_on_the_disk() -> None:
    copies = MemoryStore()
    copies.put("data/1-1-ab/rank-00007.bin", [memoryview(b"of a rank that is no more")])
    alone = start(MemoryStore(), copies=copies)
    where_saves_go(alone, range(1, 5))
    alone.save(5, to_store=True)
    alone.close()
    assert copies.list("data/")
    alone.saver.delete_copies()
    assert not copies.list("data/")


def test_the_disk_keeps_the_newest_copies_alone_and_the_log_says_so() -> None:
    bucket, copies = MemoryStore(), MemoryStore()
    alone = saved(bucket, copies, range(1, 9), keep=4)
    copied = {commit.folder for commit in live(bucket) if commit.hosts}
    assert len(copied) == LOCAL_COPIES
    assert folders(copies) == copied
    assert [commit.step for commit in live(bucket)] == [4, 5, 6, 7, 8]  # the oldest goes after the next commit
    saved(bucket, copies, range(9, 12), keep=4)  # what the attempt before has left goes, too
    assert folders(copies) == {commit.folder for commit in live(bucket) if commit.hosts}
    assert alone.saver.aborts_in_a_row == 0


class FullDisk(FaultyStore):
    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        raise StoreFull("put", key, "the disk or the quota is full; free some space")


def test_when_the_disk_is_full_the_next_save_goes_to_the_store() -> None:
    alone = start(MemoryStore(), copies=FullDisk(MemoryStore()))
    results = [alone.save(step) for step in range(1, 5)]
    alone.close()
    assert [result.commit is not None for result in results] == [True, False, True, False]
    assert results[1].abort is not None
    assert results[1].abort.is_unwritable
    assert [commit.is_stored for commit in live(alone.store)] == [True, True]


def test_what_is_not_in_the_store_cannot_be_pinned() -> None:
    bucket = NoUploads(MemoryStore())
    saved(bucket, MemoryStore(), range(1, 3))
    with pytest.raises(CheckpointError, match="is not in the store yet; pin one that is"):
        CommitLog(bucket).pin(live(bucket)[-1].n)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Alone]:
    """A rank with real writer processes, and two commits."""
    store = PosixStore(tmp_path / "store")
    alone = start(store, copies=open_copies(str(tmp_path / "disk"), "log"))
    alone.save(1)
    yield alone
    alone.close()


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_saves_go_on_while_a_commit_is_copied_and_the_next_to_be_copied_is_the_newest(real: Alone) -> None:
    uploads = real.saver._uploads
    assert uploads is not None
    assert isinstance(uploads._writer, WriterProcess)
    os.kill(uploads._writer._process.pid, signal.SIGSTOP)
    second = real.save(2).commit
    assert second is not None
    wait_for(lambda: uploads.running == second.n)
    assert real.save(3).commit is not None
    assert real.save(4).commit is not None
    assert real.saver.is_free(SECONDS)
    assert uploads.running == second.n
    stays = {commit.n for commit in live(real.store)}
    assert second.n in stays  # though it is older than a verified commit on the disk: it is being copied
    os.kill(uploads._writer._process.pid, signal.SIGCONT)
    real.saver.wait_for_upload(SECONDS)
    assert not uploads.running
    real.save(5)
    wait_for(lambda: len(uploads.results) == 2)
    assert [(upload.commit.step, upload.failure) for upload in real.saver.poll_uploads()] == [(2, ""), (5, "")]
    stored = {commit.step: commit.is_stored for commit in live(real.store)}
    assert stored[2]
    assert stored[5]
    assert not stored.get(3)
    assert not stored.get(4)


def test_a_save_to_the_store_ends_a_copy_that_is_under_way(real: Alone) -> None:
    uploads = real.saver._uploads
    assert uploads is not None
    assert isinstance(uploads._writer, WriterProcess)
    os.kill(uploads._writer._process.pid, signal.SIGSTOP)
    real.save(2)
    wait_for(lambda: uploads.running)
    commit = real.save(3, to_store=True).commit
    assert commit is not None
    assert commit.is_stored
    wait_for(lambda: not uploads.running)
    (upload,) = real.saver.poll_uploads()
    assert upload.commit.step == 2
    assert upload.failure == "it was ended for a save that goes to the store"
