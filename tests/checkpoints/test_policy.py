from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.saving import claim

from checkpoints.entry import Commit, Entry
from checkpoints.memory_store import MemoryStore
from checkpoints.policy import deletion_order, newest_stored, old_copies, orphans, retirable, without_old_copies

CLAIM = claim(MemoryStore()).state


def a_commit(
    n: int, epoch: int = 2, *, is_verified: bool = True, is_pinned: bool = False, is_stored: bool = True
) -> Commit:
    return Commit(
        n=n,
        step=n,
        epoch=epoch,
        folder=f"data/{epoch}-{n}-ab",
        manifest_digest="",
        bytes=1,
        is_verified=is_verified,
        is_pinned=is_pinned,
        is_stored=is_stored,
    )


def on_disk(n: int, epoch: int = 2, *, is_verified: bool = True) -> Commit:
    return replace(a_commit(n, epoch, is_verified=is_verified, is_stored=False), hosts=("vm",))


def a_state(*live: Commit, base: int | None = None, epoch: int = 2) -> Entry:
    return replace(CLAIM, live=live, base=base, epoch=epoch)


def retired(state: Entry, keep: int = 1) -> list[int]:
    return [commit.n for commit in retirable(state, keep)]


def test_the_newest_commits_are_kept() -> None:
    assert retired(a_state(*(a_commit(n) for n in range(1, 6))), keep=2) == [1, 2, 3]


def test_nothing_goes_before_a_later_commit_of_this_epoch_is_verified() -> None:
    old = a_commit(1, epoch=1), a_commit(2, epoch=1)
    assert retired(a_state(*old)) == []
    assert retired(a_state(*old, a_commit(3, is_verified=False))) == []
    assert retired(a_state(*old, a_commit(3))) == [1, 2]


def test_the_newest_verified_commit_stays_however_many_unverified_ones_follow() -> None:
    unverified = a_commit(3, is_verified=False), a_commit(4, is_verified=False)
    assert retired(a_state(a_commit(1), a_commit(2), *unverified)) == [1]


def test_the_base_stays_until_this_epoch_has_two_commits() -> None:
    base = a_commit(1, epoch=1)
    assert retired(a_state(base, a_commit(2), base=1)) == []
    assert retired(a_state(base, a_commit(2), a_commit(3), base=1)) == [1, 2]


def test_a_damaged_commit_that_was_skipped_does_not_count_against_the_base() -> None:
    base, skipped = a_commit(1, epoch=1), a_commit(2, epoch=1, is_verified=False)
    assert retired(a_state(base, skipped, a_commit(3), base=1)) == [2]


def test_a_pinned_commit_stays() -> None:
    assert retired(a_state(a_commit(1, is_pinned=True), a_commit(2), a_commit(3))) == [2]


def test_what_is_on_disks_alone_makes_room_for_nothing_in_the_store() -> None:
    assert retired(a_state(a_commit(1), a_commit(2), on_disk(3), on_disk(4))) == [1, 3]
    assert retired(a_state(a_commit(1), on_disk(2), on_disk(3, is_verified=False))) == []
    assert retired(a_state(a_commit(1), on_disk(2), a_commit(3))) == [1, 2]


def test_a_commit_that_is_being_copied_stays() -> None:
    state = a_state(a_commit(1), on_disk(2), on_disk(3), on_disk(4))
    assert [commit.n for commit in retirable(state, 1, uploading=2)] == [3]


def test_a_base_on_disks_alone_stays_until_this_epoch_has_two_commits() -> None:
    base = a_commit(1, epoch=1), on_disk(2, epoch=1)
    assert retired(a_state(*base, on_disk(3), base=2)) == []
    assert retired(a_state(*base, on_disk(3), on_disk(4), base=2)) == [2, 3]


def test_of_the_commits_in_the_store_the_newest_two_have_copies_and_of_the_others_all() -> None:
    copied = [replace(a_commit(n), hosts=("vm",)) for n in (1, 2, 4)]
    live = without_old_copies((*copied[:2], on_disk(3), copied[2], a_commit(5)))
    assert [bool(commit.hosts) for commit in live] == [False, False, True, True, False]


def test_a_rank_deletes_its_own_copies_and_those_of_ended_epochs_that_the_log_does_not_name() -> None:
    saves = ["data/1-5-ab", "data/2-6-ab", "data/3-7-ab", "data/3-8-ab", "data/4-9-ab"]
    keys = [f"{save}/rank-{rank:05d}.bin" for save in saves for rank in (0, 1)]
    gone = old_copies(keys, ["data/2-6-ab", "data/3-8-ab"], range(1, 3), 3, "rank-00001.bin")
    assert gone == ("data/1-5-ab/rank-00000.bin", "data/1-5-ab/rank-00001.bin", "data/3-7-ab/rank-00001.bin")


def test_keeping_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep=0 would delete every checkpoint"):
        retirable(a_state(a_commit(1)), 0)


commits = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 2)), max_size=8).map(
    lambda rows: tuple(
        a_commit(n, epoch, is_verified=is_verified, is_pinned=is_pinned)
        for n, (is_verified, is_pinned, epoch) in enumerate(sorted(rows, key=lambda row: row[2]), start=1)
    )
)


@given(commits, st.integers(1, 4), st.integers(1, 8))
def test_whatever_is_live_the_newest_verified_commit_survives(live: tuple[Commit, ...], keep: int, base: int) -> None:
    gone = retirable(a_state(*live, base=base), keep)
    left = [commit for commit in live if commit not in gone]
    newest_verified = [commit for commit in live if commit.is_verified][-1:]
    assert set(newest_verified) <= set(left)
    assert list(live[-keep:]) == left[-keep:]
    assert not any(commit.is_pinned for commit in gone)


def test_only_saves_of_lower_epochs_that_are_not_live_are_orphans() -> None:
    state = a_state(a_commit(7, epoch=1), epoch=3)
    keys = [
        "data/1-7-ab/MANIFEST.json",  # live
        "data/1-8-cd/rank-00000.bin",
        "data/2-9-ef/rank-00000.bin",
        "data/3-9-ef/rank-00000.bin",  # this epoch
        "data/4-9-ef/rank-00000.bin",  # a successor's
        "data/notes/readme.txt",
        "log/000000000001.json",
    ]
    assert orphans(keys, state) == ("data/1-8-cd/rank-00000.bin", "data/2-9-ef/rank-00000.bin")


def test_saves_that_a_damaged_entry_may_have_told_of_are_never_orphans() -> None:
    state = replace(a_state(a_commit(7, epoch=1), epoch=4), doubtful_epoch=2)
    keys = [f"data/{epoch}-9-ef/rank-00000.bin" for epoch in range(1, 5)]
    assert orphans(keys, state) == ("data/3-9-ef/rank-00000.bin",)


def test_the_manifest_is_deleted_first() -> None:
    assert deletion_order(["data/a/A.bin", "data/a/MANIFEST.json", "data/a/rank.bin"])[0] == "data/a/MANIFEST.json"


def test_a_run_that_lost_its_machines_would_go_on_from_what_is_stored_and_was_not_passed_over() -> None:
    def newest(*live: Commit, base: int | None = None) -> int | None:
        found = newest_stored(a_state(*live, base=base))
        return found and found.n

    assert newest(on_disk(1)) is None
    assert newest(a_commit(1), on_disk(2)) == 1
    assert newest(a_commit(1, epoch=1), a_commit(2, epoch=1), a_commit(3, epoch=1), base=2) == 2
    assert newest(a_commit(1, epoch=1), on_disk(2, epoch=1), base=2) == 1
    assert newest(a_commit(1, epoch=1), a_commit(2, epoch=1), a_commit(3), base=1) == 3
