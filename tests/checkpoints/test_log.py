from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.saving import claim, live, owner

from checkpoints.entry import MOST_BYTES, Commit, Entry, Kind, entry_key
from checkpoints.errors import CheckpointError, CorruptCheckpoint, Fenced, OutcomeUnknown, OwnerAlive
from checkpoints.log import Claim, CommitLog
from checkpoints.memory_store import MemoryStore
from checkpoints.posix_store import PosixStore
from checkpoints.store import Created

ENTRY_BEFORE_LOCAL_COPIES = (  # as it was written then
    b'{"base":null,"body":{},"commits":2,'
    b'"digest":"61db912ae2a2d0dc93ba93f8cbea45084630a813f4d639551d2c8cc2806fb878","doubtful_epoch":0,"epoch":1,'
    b'"is_done":false,"kind":"COMMIT","live":[{"bytes":4096,"epoch":1,"folder":"data/1-20-ab","is_pinned":false,'
    b'"is_verified":true,"manifest_digest":"d","n":2,"step":20},{"bytes":4096,"epoch":1,"folder":"data/1-30-ab",'
    b'"is_pinned":true,"is_verified":false,"manifest_digest":"d","n":3,"step":30}],"n":3,"nonce":"f",'
    b'"owner":{"boot_id":"b","host":"vm","job":"run/1","pid":7,"started":9},"prev":"p","written_at":1.5}\n'
)


def commit(held: Claim, step: int, verified: tuple[int, ...] = ()) -> Commit:
    return held.commit(step=step, folder=f"data/{held.epoch}-{step}-ab", manifest_digest="d", size=1, verified=verified)


def damage(store: MemoryStore, n: int) -> None:
    data = bytearray(store._files[entry_key(n)])
    data[len(data) // 2] ^= 1
    store._files[entry_key(n)] = bytes(data)


def test_an_empty_log_has_no_state() -> None:
    assert CommitLog(MemoryStore()).read() is None


def test_the_newest_entry_alone_is_the_state() -> None:
    store = MemoryStore()
    held = claim(store)
    first, second = commit(held, 10), commit(held, 20)
    state = CommitLog(store).read()
    assert state is not None
    assert (state.kind, state.n, state.epoch, state.commits) == (Kind.COMMIT, 3, 1, 2)
    assert state.live == (first, second)


@pytest.mark.parametrize("commits", [2, 200])
def test_the_state_is_found_with_one_read_however_long_the_log_is(commits: int) -> None:
    class Counting(MemoryStore):
        reads = 0

        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            self.reads += 1
            return super().get(key, start, length)

    store = Counting()
    held = claim(store)
    for step in range(commits):
        commit(held, step)
    store.reads = 0
    CommitLog(store).read()
    assert store.reads == 1


def test_entries_follow_each_other_and_come_back_as_they_were_written() -> None:
    store = MemoryStore()
    held = claim(store)
    commit(held, 10)
    held.done({"reason": "all steps"})
    entries, found = CommitLog(store).history()
    assert [entry.kind for entry in entries] == [Kind.CLAIM, Kind.COMMIT, Kind.DONE]
    assert [entry.prev for entry in entries] == ["", entries[0].digest, entries[1].digest]
    assert found == []
    assert all(Entry.from_bytes(entry.n, entry.to_bytes()) == entry for entry in entries)


def test_a_claim_starts_from_the_newest_live_commit_in_log_order_whatever_its_step() -> None:
    store = MemoryStore()
    held = claim(store)
    commit(held, 500)
    newest = commit(held, 400)
    assert claim(store).state.base == newest.n


def test_a_living_owner_of_another_job_is_not_displaced() -> None:
    log = CommitLog(MemoryStore())
    log.claim(owner("job 1"))
    with pytest.raises(OwnerAlive, match=r"job job 1 \(process .*--takeover"):
        log.claim(owner("job 2"))
    assert log.claim(owner("job 1")).epoch == 2
    assert log.claim(owner("job 2"), is_takeover=True).epoch == 3


def test_an_owner_that_is_dead_or_done_is_displaced() -> None:
    log = CommitLog(MemoryStore())
    log.claim(owner("job 1"))
    held = log.claim(owner("job 2"), is_alive=lambda _: False)
    held.done()
    assert log.claim(owner("job 3")).epoch == 3


def test_a_fenced_claim_changes_nothing_ever_again() -> None:
    store = MemoryStore()
    zombie = claim(store)
    commit(zombie, 10)
    successor = claim(store)
    kept = commit(successor, 20)
    for operation in (
        lambda: commit(zombie, 30),
        lambda: zombie.resumed(kept, {}),
        lambda: zombie.done(),
        lambda: commit(zombie, 30),
    ):
        with pytest.raises(Fenced, match="taken over by job this job"):
            operation()
    state = CommitLog(store).read()
    assert state is not None
    assert (state.epoch, state.live[-1]) == (2, kept)


def test_racing_claims_each_get_an_epoch_of_their_own(tmp_path: Path) -> None:
    epochs: list[int] = []
    barrier = threading.Barrier(6)

    def race() -> None:
        log = CommitLog(PosixStore(tmp_path))
        barrier.wait()
        epochs.append(log.claim(owner()).epoch)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(epochs) == [1, 2, 3, 4, 5, 6]


def test_pinning_needs_no_claim_and_does_not_disturb_its_holder() -> None:
    store = MemoryStore()
    held = claim(store)
    first = commit(held, 10)
    CommitLog(store).pin(first.n)
    second = commit(held, 20)
    assert live(store) == (replace(first, is_pinned=True), second)
    CommitLog(store).pin(first.n, is_pinned=False)
    assert live(store) == (first, second)


def test_a_commit_that_is_pinned_at_the_last_moment_is_not_retired() -> None:
    store = MemoryStore()
    held = claim(store)
    first, second = commit(held, 10), commit(held, 20)
    third = commit(held, 30, verified=(second.n,))
    CommitLog(store).pin(first.n)  # unseen by the holder, who would retire it
    assert held.retire(keep=1) == ()
    assert [found.n for found in live(store)] == [first.n, second.n, third.n]


def test_only_live_commits_can_be_pinned() -> None:
    store = MemoryStore()
    with pytest.raises(CheckpointError, match="7 is not a live commit; the live ones are: none"):
        CommitLog(store).pin(7)
    first = commit(claim(store), 10)
    with pytest.raises(CheckpointError, match=f"the live ones are: {first.n}"):
        CommitLog(store).pin(7)


def test_resuming_verifies_what_was_loaded_and_distrusts_what_was_skipped() -> None:
    store = MemoryStore()
    held = claim(store)
    first, second = commit(held, 10), commit(held, 20)
    commit(held, 30, verified=(second.n,))
    held = claim(store)
    held.resumed(first, {second.n: "a block has the wrong digest"})
    assert held.state.base == first.n
    assert [found.is_verified for found in held.state.live] == [True, False, False]
    assert held.state.body["skipped"] == [{"commit": second.n, "reason": "a block has the wrong digest"}]


def test_a_damaged_newest_entry_is_skipped_and_reported() -> None:
    store = MemoryStore()
    held = claim(store)
    first, second = commit(held, 10), commit(held, 20)
    damage(store, second.n)
    reading = CommitLog(store).find()
    assert reading.entry is not None
    assert reading.entry.live == (first,)
    for found in (reading.damage, CommitLog(store).history()[1]):
        assert [str(error).startswith(entry_key(second.n)) for error in found] == [True]


def test_a_claim_is_refused_when_damaged_entries_alone_may_tell_of_what_was_saved() -> None:
    store = MemoryStore()
    held = claim(store)
    store.put("data/1-10-ab/MANIFEST.json", [memoryview(b"{}")])
    damage(store, commit(held, 10).n)
    with pytest.raises(CorruptCheckpoint, match="1 entries are damaged, and those before tell of no commit"):
        claim(store)


def test_an_entry_of_a_run_without_local_copies_is_read_and_written_as_before_there_could_be_any() -> None:
    def old(n: int, *, is_verified: bool) -> Commit:
        folder = f"data/1-{10 * n}-ab"
        return Commit(
            n=n, step=10 * n, epoch=1, folder=folder, manifest_digest="d", bytes=4096,
            is_pinned=not is_verified, is_verified=is_verified,
        )  # fmt: skip

    entry = Entry.from_bytes(3, ENTRY_BEFORE_LOCAL_COPIES)
    assert entry.live == (old(2, is_verified=True), old(3, is_verified=False))
    assert all(commit.is_stored and commit.hosts == () for commit in entry.live)
    assert replace(entry).to_bytes() == ENTRY_BEFORE_LOCAL_COPIES


def test_a_commit_on_disks_alone_is_so_whatever_they_are_called() -> None:
    store = MemoryStore()
    held = claim(store)
    for hosts in ((), ("",), ("vm",)):
        made = held.commit(step=1, folder="data/1-1-ab", manifest_digest="d", size=1, is_stored=False, hosts=hosts)
        assert (made.is_stored, made.hosts) == (False, hosts)
    assert live(store)[-1] == made


def test_what_has_reached_the_store_is_verified_when_the_next_commit_says_so() -> None:
    held = claim(MemoryStore())
    made = held.commit(step=1, folder="data/1-1-ab", manifest_digest="d", size=1, is_stored=False, hosts=("vm",))
    held.stored(made.n)
    assert [(found.is_stored, found.is_verified) for found in held.state.live] == [(True, False)]
    commit(held, 2, verified=(made.n,))
    assert held.state.live[0].is_verified


def test_logs_of_one_place_have_names_of_their_own_that_stay() -> None:
    first, second = MemoryStore(), MemoryStore()
    held = claim(first)
    claim(second)
    name = CommitLog(first).name()
    commit(held, 10)
    assert CommitLog(first).name() == name != CommitLog(second).name()


def test_a_run_goes_on_from_a_log_of_before_local_copies() -> None:
    store = MemoryStore()
    store.create(entry_key(3), ENTRY_BEFORE_LOCAL_COPIES)
    state = claim(store).state
    assert (state.epoch, state.base, [commit.n for commit in state.live]) == (2, 3, [2, 3])


def test_a_claim_over_a_damaged_entry_fences_the_claim_that_it_may_have_been() -> None:
    store = MemoryStore()
    claim(store)
    hidden = claim(store)
    damage(store, 2)
    found = claim(store)
    assert (found.epoch, found.state.n) == (3, 3)
    assert entry_key(2) in str(found.state.body["damaged"])
    with pytest.raises(Fenced):
        commit(hidden, 10)
    commit(found, 20)


def test_nothing_is_appended_above_a_damaged_entry_except_a_claim() -> None:
    store = MemoryStore()
    held = claim(store)
    first = commit(held, 10)
    CommitLog(store).pin(first.n)
    damage(store, 3)
    with pytest.raises(CorruptCheckpoint, match=entry_key(3)):
        CommitLog(store).pin(first.n)
    with pytest.raises(CorruptCheckpoint, match=entry_key(3)):
        commit(held, 20)


def test_a_log_without_an_intact_entry_is_not_taken_for_an_empty_one() -> None:
    store = MemoryStore()
    claim(store)
    damage(store, 1)
    with pytest.raises(CorruptCheckpoint, match="not one of 1 entries is intact"):
        CommitLog(store).read()


def test_an_entry_that_was_forged_into_the_chain_is_noticed() -> None:
    store = MemoryStore()
    held = claim(store)
    forged = replace(held.state.followed_by(Kind.DONE), prev="0" * 64)
    store.create(forged.key, forged.to_bytes())
    with pytest.raises(CorruptCheckpoint, match="does not follow"):
        commit(held, 10)


class LostReplies(MemoryStore):
    """Answers UNKNOWN the first times, having stored the data or not."""

    def __init__(self, times: int, *, is_stored: bool) -> None:
        super().__init__()
        self.times = times
        self.is_stored = is_stored

    def create(self, key: str, data: bytes) -> Created:
        if self.times == 0:
            return super().create(key, data)
        self.times -= 1
        if self.is_stored:
            super().create(key, data)
        return Created.UNKNOWN


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_lost_reply_is_settled_by_reading_the_slot(is_stored: bool) -> None:
    store = LostReplies(0, is_stored=is_stored)
    held = claim(store)
    store.times = 2
    commit(held, 10)
    assert [found.step for found in live(store)] == [10]


def test_a_reply_that_never_comes_is_unknown_and_the_next_append_finds_out() -> None:
    store = LostReplies(0, is_stored=True)
    held = CommitLog(store, deadline_seconds=0).claim(owner())
    store.times = 1
    with pytest.raises(OutcomeUnknown, match="not known"):
        commit(held, 10)
    commit(held, 20)
    assert [found.step for found in live(store)] == [10, 20]


def test_a_log_entry_that_would_be_too_long_is_refused_before_it_is_stored() -> None:
    held = claim(MemoryStore())
    with pytest.raises(CheckpointError, match="more than"):
        held.done({"text": "x" * MOST_BYTES})
    held.done()


def an_entry() -> Entry:
    store = MemoryStore()
    held = claim(store)
    commit(held, 10)
    return held.state


ENTRY = an_entry()
DATA = ENTRY.to_bytes()


@given(st.integers(0, len(DATA) * 8 - 1))
def test_every_single_flipped_bit_of_an_entry_is_found(bit: int) -> None:
    flipped = bytearray(DATA)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptCheckpoint):
        Entry.from_bytes(ENTRY.n, bytes(flipped))


@given(st.binary(max_size=300) | st.integers(0, len(DATA) - 1).map(lambda length: DATA[:length]))
def test_no_other_bytes_are_an_entry(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        Entry.from_bytes(ENTRY.n, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 3},
        {"n": True},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 10**30},
        {"epoch": 1.0},
        {"kind": "HACK"},
        {"kind": None},
        {"owner": None},
        {"owner": {}},
        {"live": {}},
        {"live": [None]},
        {"live": [{**json.loads(DATA)["live"][0], "folder": "../../etc"}]},
        {"live": [{**json.loads(DATA)["live"][0], "folder": "/etc"}]},
        {"live": [{**json.loads(DATA)["live"][0], "extra": 1}]},
        {"body": []},
        {"written_at": "now"},
        {"nonce": "a\nb"},
        {"extra": 1},
        {"digest": "0" * 64},
    ],
)
def test_an_entry_that_no_writer_could_have_written_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptCheckpoint):
        Entry.from_bytes(ENTRY.n, json.dumps({**json.loads(DATA), **changes}).encode())


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b"x" * (MOST_BYTES + 1), b"NaN", b"\xff"]
)
def test_an_entry_that_is_a_bomb_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        Entry.from_bytes(1, data)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["FIFO", "link"])
def test_what_is_no_file_in_an_entry_s_place_is_damage_that_the_next_claim_passes_over(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    log = CommitLog(PosixStore(tmp_path))
    log.claim(owner("first"))
    make(tmp_path / entry_key(2))
    reading = log.find()
    assert (reading.entry and reading.entry.n, reading.slot, len(reading.damage)) == (1, 2, 1)
    assert log.claim(owner("second"), is_takeover=True).state.n == 3


def test_a_folder_where_the_next_entry_belongs_is_named(tmp_path: Path) -> None:
    log = CommitLog(PosixStore(tmp_path))
    log.claim(owner("first"))
    (tmp_path / entry_key(2)).mkdir()
    with pytest.raises(CorruptCheckpoint, match=f"{entry_key(2)}.*remove it"):
        log.claim(owner("second"), is_takeover=True)
