"""Saving and restoring with one rank, and with two that are threads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.faulty_store import Crash, FaultyStore
from support.saving import SECONDS, Alone, assert_state, claim, live, start, state_of
from support.writers import kill_when_it_has_a_command, stop
from torch.distributed import HashStore
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.channel import Channel
from checkpoints.errors import Fenced, NoIntactCheckpoint, PeerSilent, StateMismatch, StoreFull
from checkpoints.log import CommitLog
from checkpoints.memory_store import MemoryStore
from checkpoints.posix_store import PosixStore
from checkpoints.reader import digests, verify
from checkpoints.restorer import Restored, load, restore
from checkpoints.saver import Saver, SaveResult
from checkpoints.store import Store
from checkpoints.writer import WriterProcess


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return PosixStore(tmp_path) if request.param == "folder" else MemoryStore()


@pytest.fixture
def alone(store: Store) -> Iterator[Alone]:
    alone = start(store)
    yield alone
    alone.close()


def writer_of(alone: Alone) -> WriterProcess:
    assert isinstance(alone.saver._writer, WriterProcess)
    return alone.saver._writer


def test_a_run_without_commits_starts_from_nothing(alone: Alone) -> None:
    assert alone.restored is None


def test_what_was_saved_is_restored_bit_for_bit_with_its_metadata(alone: Alone) -> None:
    result = alone.save(10)
    assert result.commit is not None
    assert (result.abort, result.damage) == (None, ())
    assert 0 < result.blocked_seconds <= result.seconds
    successor = start(alone.store)
    assert successor.restored == Restored(commit=result.commit, metadata={"samples": 80}, skipped={})
    assert_state(successor.state, 10)
    successor.close()


def test_training_may_change_the_state_as_soon_as_save_returns(alone: Alone) -> None:
    state, metadata = state_of(10), {"samples": 80}
    alone.saver.save(10, state, metadata)
    for value in state.values():
        value.zero_()
    metadata["samples"] = 0
    (result,) = alone.saver.wait(SECONDS)
    assert result.commit is not None
    target = state_of(-1)
    assert load(alone.store, result.commit, target) == {"samples": 80}
    assert_state(target, 10)


def test_saves_queue_behind_each_other_and_each_is_reported_once(alone: Alone) -> None:
    for step in (1, 2, 3):
        alone.saver.save(step, state_of(step), {})
    results = alone.saver.wait(SECONDS)
    assert [result.step for result in results] == [1, 2, 3]
    assert alone.saver.poll() == []


def test_a_save_whose_writer_hangs_is_known_by_its_step_until_it_ends(tmp_path: Path) -> None:
    alone = start(PosixStore(tmp_path))
    assert alone.saver.running() is None
    alone.save(1)
    pid = writer_of(alone)._process.pid
    os.kill(pid, signal.SIGSTOP)
    alone.saver.save(2, state_of(2), {})
    running = alone.saver.running()
    assert running is not None
    assert running.step == 2
    assert not alone.saver.is_free(0.05)
    os.kill(pid, signal.SIGCONT)
    (result,) = alone.saver.wait(SECONDS)
    assert result.commit is not None
    assert alone.saver.is_free(0)
    assert alone.saver.running() is None
    alone.close()


def test_a_commit_is_verified_by_reading_it_back_and_the_next_entry_says_so(alone: Alone) -> None:
    for step in (1, 2, 3):
        alone.save(step)
    alone.close()
    assert [commit.is_verified for commit in live(alone.store)] == [True, False]


def test_old_commits_are_deleted_after_they_were_retired(alone: Alone) -> None:
    for step in range(1, 6):
        alone.save(step)
    alone.close()
    folders = {key.rpartition("/")[0] for key in alone.store.list("data/")}
    assert folders == {commit.folder for commit in live(alone.store)}
    assert [commit.step for commit in live(alone.store)] == [4, 5]


def test_a_pinned_commit_is_never_deleted(alone: Alone) -> None:
    first = alone.save(1).commit
    assert first is not None
    CommitLog(alone.store).pin(first.n)
    for step in range(2, 6):
        alone.save(step)
    alone.close()
    assert [commit.step for commit in live(alone.store)] == [1, 4, 5]
    verify(alone.store, live(alone.store)[0])


class CountCopies(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_save_blocks_for_one_copy_of_the_state_and_touches_no_storage(tmp_path: Path) -> None:
    store = FaultyStore(PosixStore(tmp_path))
    alone = start(store)
    store.threads.clear()
    with CountCopies() as counted:
        alone.saver.save(1, state_of(1), {})
    made = counted.operations.count("aten.full.default") + counted.operations.count("aten.empty.memory_format")
    assert made < len(state_of(1))  # those of state_of itself
    assert counted.operations.count("aten._foreach_copy_.default") == 1
    assert "aten.clone.default" not in counted.operations
    alone.saver.wait(SECONDS)
    assert store.threads == {"checkpoints"}
    alone.close()


def test_a_state_that_changed_since_it_was_prepared_is_refused(alone: Alone) -> None:
    state = state_of(1)
    with pytest.raises(StateMismatch, match=r"only one of them has model\.bias"):
        alone.saver.save(1, {name: value for name, value in state.items() if name != "model.bias"}, {})
    state["model.bias"] = torch.zeros(1, dtype=torch.bfloat16)  # would be copied to all seven without a word
    with pytest.raises(StateMismatch, match=r"model.bias is torch.bfloat16 \(1,\), and was torch.bfloat16 \(7,\)"):
        alone.saver.save(1, state, {})


def test_what_cannot_be_saved_is_refused_before_training() -> None:
    for state, reason in (({"step": 5}, "not a tensor"), ({"code": torch.zeros(2, dtype=torch.uint16)}, "uint16")):
        channel = Channel(HashStore(), "attempt")
        store = MemoryStore()
        saver = Saver(store=store, channel=channel, claim=claim(store), rank=0, world_size=1, keep=1)
        with pytest.raises(StateMismatch, match=reason):
            saver.prepare(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [{"loss": float("nan")}, {"value": object()}])
def test_metadata_that_is_not_json_is_refused_by_save(alone: Alone, metadata: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        alone.saver.save(1, state_of(1), metadata)  # type: ignore[arg-type]


def test_a_successor_fences_a_saver_which_changes_nothing_more(alone: Alone) -> None:
    alone.save(1)
    successor = start(alone.store)
    successor.save(2)
    successor.close()
    before = alone.store.list("log/"), live(alone.store)
    alone.saver.save(3, state_of(3), {})
    with pytest.raises(Fenced, match="taken over"):
        alone.saver.wait(SECONDS)
    with pytest.raises(Fenced, match="taken over"):
        alone.saver.save(4, state_of(4), {})
    assert (alone.store.list("log/"), live(alone.store)) == before
    for commit in live(alone.store):
        verify(alone.store, commit)


def test_what_a_fenced_saver_left_behind_is_collected_by_the_next_claim(alone: Alone) -> None:
    alone.save(1)
    successor = start(alone.store)
    alone.saver.save(3, state_of(3), {})
    with pytest.raises(Fenced):
        alone.saver.wait(SECONDS)
    successor.save(4)
    successor.close()
    last = start(alone.store)
    last.save(5)
    last.close()
    folders = {key.rpartition("/")[0] for key in alone.store.list("data/")}
    assert folders == {commit.folder for commit in live(alone.store)}


def test_a_killed_writer_aborts_the_save_and_the_next_one_is_committed(tmp_path: Path) -> None:
    two_commits(tmp_path)
    alone = start(PosixStore(tmp_path))
    stop(writer_of(alone))
    killer = kill_when_it_has_a_command(writer_of(alone))
    alone.saver.save(30, state_of(30), {})
    (result,) = alone.saver.wait(SECONDS)
    killer.join()
    assert result.abort is not None
    assert "rank 0 could not save" in str(result.abort)
    assert "exit code -9" in str(result.abort)
    assert alone.saver.aborts_in_a_row == 1
    assert [commit.step for commit in live(alone.store)] == [10, 20]
    assert alone.save(40).commit is not None
    assert alone.saver.aborts_in_a_row == 0
    alone.close()
    assert [commit.step for commit in live(alone.store)] == [10, 20, 40]
    assert len({key.rpartition("/")[0] for key in alone.store.list("data/")}) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this sandbox may not mount file systems")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_aborts_saves_and_loses_nothing_until_there_is_space_again(small_disk: Path) -> None:
    alone = start(PosixStore(small_disk / "run"))
    alone.save(1)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**20))
    for step in (2, 3):
        result = alone.save(step)
        assert result.commit is None
        assert "full; free some space" in str(result.abort)
    assert alone.saver.aborts_in_a_row == 2
    (commit,) = live(alone.store)
    verify(alone.store, commit)
    ballast.unlink()
    assert alone.save(4).commit is not None
    assert [commit.step for commit in live(alone.store)] == [1, 4]
    alone.close()


class RottingStore(PosixStore):
    """Damages what was saved of step 1, before it is read back."""

    crosses_processes = False

    def read_back(self, key: str, block_bytes: int) -> Iterator[memoryview]:
        if "-1-" in key:
            flip_bit(Path(self.url) / key, 100)
        return super().read_back(key, block_bytes)


def test_damage_on_the_medium_is_reported_with_the_next_save_and_the_commit_is_not_trusted(tmp_path: Path) -> None:
    alone = start(RottingStore(tmp_path))
    alone.save(1)
    assert "commit 2 (step 1)" in alone.save(2).damage[0]
    alone.save(3)
    alone.close()
    assert [(commit.step, commit.is_verified) for commit in live(alone.store)] == [(2, True), (3, False)]


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 4]))


def two_commits(root: Path) -> tuple[Path, Path]:
    alone = start(PosixStore(root))
    alone.save(10)
    alone.save(20)
    alone.close()
    old, new = (root / commit.folder for commit in live(alone.store))
    return old, new


@pytest.mark.parametrize("at", [0, 100, 4799, 4808, 9000, 14463, 16383])
def test_a_flipped_bit_anywhere_in_a_file_is_found_and_named(tmp_path: Path, at: int) -> None:
    _, new = two_commits(tmp_path)
    flip_bit(new / "rank-00000.bin", at)
    store = PosixStore(tmp_path)
    with pytest.raises(Exception, match=r"rank-00000.bin: block 0 \(byte 0\) has the wrong digest"):
        verify(store, live(store)[1])


def test_files_are_small_enough_for_the_flips_above_to_hit_everything(tmp_path: Path) -> None:
    _, new = two_commits(tmp_path)
    assert (new / "rank-00000.bin").stat().st_size == 16384


DAMAGES = {
    "a flipped bit in a shard": lambda old, new: flip_bit(new / "rank-00000.bin", 100),
    "a flipped bit in the manifest": lambda old, new: flip_bit(new / "MANIFEST.json", 100),
    "a truncated shard": lambda old, new: os.truncate(new / "rank-00000.bin", 4096),
    "a shard that grew": lambda old, new: os.truncate(new / "rank-00000.bin", 10**6),
    "a missing shard": lambda old, new: (new / "rank-00000.bin").unlink(),
    "a missing manifest": lambda old, new: (new / "MANIFEST.json").unlink(),
    "the shard of another step": lambda old, new: (new / "rank-00000.bin").write_bytes(
        (old / "rank-00000.bin").read_bytes()
    ),
    "the manifest of another step": lambda old, new: (new / "MANIFEST.json").write_bytes(
        (old / "MANIFEST.json").read_bytes()
    ),
    "everything of another step": lambda old, new: [
        (new / path.name).write_bytes(path.read_bytes()) for path in old.iterdir()
    ],
    "a shard that became a link": lambda old, new: (
        (new / "rank-00000.bin").unlink(),
        (new / "rank-00000.bin").symlink_to(old / "rank-00000.bin"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_commit_is_skipped_for_the_one_before_it_and_the_log_says_why(tmp_path: Path, damage: str) -> None:
    old, new = two_commits(tmp_path)
    DAMAGES[damage](old, new)
    alone = start(PosixStore(tmp_path))
    assert alone.restored is not None
    assert alone.restored.commit.step == 10
    assert_state(alone.state, 10)
    ((n, reason),) = alone.restored.skipped.items()
    assert new.name in reason
    assert alone.claim.state.body["skipped"] == [{"commit": n, "reason": reason}]
    assert alone.save(15).commit is not None
    alone.close()


def test_the_files_of_a_commit_whose_log_entry_is_damaged_are_left_alone_for_ever(tmp_path: Path) -> None:
    _, new = two_commits(tmp_path)
    store = PosixStore(tmp_path)
    flip_bit(max((tmp_path / "log").iterdir()), 50)
    for _ in range(2):
        alone = start(store)
        assert alone.restored is not None
        assert alone.restored.commit.step in (10, 12)
        for step in (11, 12):
            assert alone.save(step).commit is not None
        alone.close()
    assert (new / "rank-00000.bin").exists()


def test_when_no_commit_is_intact_nothing_starts_from_scratch(tmp_path: Path) -> None:
    for folder in two_commits(tmp_path):
        flip_bit(folder / "rank-00000.bin", 0)
    with pytest.raises(NoIntactCheckpoint, match="none of the 2 commits is intact") as raised:
        start(PosixStore(tmp_path))
    assert len(raised.value.skipped) == 2


def test_a_commit_of_another_model_is_refused_in_one_line_and_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    two_commits(tmp_path)
    store = PosixStore(tmp_path)
    extra, smaller, other = state_of(0), state_of(0), state_of(0)
    extra["model.new"] = torch.zeros(1)
    del smaller["model.bias"]
    other["model.weight"] = torch.zeros(40, 31)
    other["model.bias"] = torch.zeros(7)
    for state, reason in (
        (extra, "it lacks model.new"),
        (smaller, "also has model.bias"),
        (other, r"model.weight is float32 \(40, 30\) in it and float32 \(40, 31\) here, model.bias is bfloat16"),
    ):
        channel = Channel(HashStore(), "attempt")
        with pytest.raises(StateMismatch, match=reason):
            restore(store=store, channel=channel, claim=claim(store), rank=0, world_size=1, state=state)


def test_a_part_of_a_commit_can_be_loaded_alone(alone: Alone) -> None:
    commit = alone.save(10).commit
    assert commit is not None
    weights = {name: value for name, value in state_of(-1).items() if name.startswith("model.")}
    load(alone.store, commit, weights)
    assert torch.equal(weights["model.weight"], state_of(10)["model.weight"])


def in_threads(function, ranks: int = 2) -> list:  # type: ignore[no-untyped-def, type-arg]
    """What the function returns for each rank."""
    with ThreadPoolExecutor(ranks) as pool:
        return [future.result(SECONDS) for future in [pool.submit(function, rank) for rank in range(ranks)]]


class Together:
    """Two ranks of one attempt, in threads."""

    def __init__(self, store: Store, stores: dict[int, Store] | None = None, deadline_seconds: float = SECONDS) -> None:
        self.store = store
        self.claim = claim(store)
        board = HashStore()
        channels = [Channel(board, "attempt") for _ in range(2)]
        self.states = [state_of(-1), state_of(-1)]

        def restored(rank: int) -> Restored | None:
            return restore(
                store=store,
                channel=channels[rank],
                claim=self.claim if rank == 0 else None,
                rank=rank,
                world_size=2,
                state=self.states[rank],
            )

        self.restored = in_threads(restored)
        self.savers = [
            Saver(
                store=(stores or {}).get(rank, store),
                channel=channels[rank],
                claim=self.claim if rank == 0 else None,
                rank=rank,
                world_size=2,
                keep=2,
                deadline_seconds=deadline_seconds,
            )
            for rank in range(2)
        ]
        in_threads(lambda rank: self.savers[rank].prepare(self.states[rank]))

    def save(self, step: int) -> list[SaveResult]:
        for saver in self.savers:
            saver.save(step, state_of(step), {"samples": step})
        return [result for saver in self.savers for result in saver.wait(SECONDS)]

    def close(self) -> None:
        for saver in self.savers:
            saver.close(SECONDS)


def test_two_ranks_share_the_work_and_each_learns_the_verdict(store: Store) -> None:
    together = Together(store)
    first, second = together.save(10)
    assert first.commit == second.commit
    assert first.commit is not None
    sizes = [size for key, size in store.list(f"{first.commit.folder}/").items() if key.endswith(".bin")]
    assert len(sizes) == 2
    assert max(sizes) < sum(value.nbytes for value in state_of(0).values())  # nothing is saved twice
    together.close()
    again = Together(store)
    assert again.restored[0] == again.restored[1]
    for state in again.states:
        assert_state(state, 10)
    again.close()


def test_a_commit_counts_as_verified_when_all_ranks_have_read_it_back(store: Store) -> None:
    together = Together(store)
    together.save(1)
    together.save(2)
    assert [commit.is_verified for commit in live(store)] == [True, False]
    together.close()


def test_a_commit_that_one_rank_finds_damaged_is_not_trusted(tmp_path: Path) -> None:
    together = Together(PosixStore(tmp_path), {1: RottingStore(tmp_path)})
    together.save(1)
    for result in together.save(2):
        assert "rank-00001.bin: block 0" in result.damage[0]
    assert not any(commit.is_verified for commit in live(together.store))
    together.close()


def test_a_file_that_the_store_has_cut_short_without_a_word_is_not_committed(tmp_path: Path) -> None:
    class ForgetfulStore(PosixStore):
        crosses_processes = False

        def put(self, key: str, blocks: Iterable[memoryview]) -> None:
            super().put(key, (block[: len(block) // 2] if key.endswith(".bin") else block for block in blocks))

    alone = start(ForgetfulStore(tmp_path))
    assert "has 8192 bytes instead of 16384" in str(alone.save(1).abort)
    alone.close()
    assert alone.store.list("data/") == {}


def test_each_save_has_a_folder_of_its_own_even_of_the_same_step(alone: Alone) -> None:
    folders = {result.commit.folder for result in (alone.save(1), alone.save(1)) if result.commit}
    assert len(folders) == 2


def test_digests_do_not_depend_on_how_many_ranks_saved() -> None:
    one, two = MemoryStore(), MemoryStore()
    alone, together = start(one), Together(two)
    alone.saver.save(10, state_of(10), {"samples": 10})
    alone.saver.wait(SECONDS)
    together.save(10)
    alone.save(11)
    expected = digests(one, live(one)[0])
    assert set(expected) == {"weights", "optimizer", "samples"}
    assert digests(two, live(two)[0]) == expected
    assert digests(one, live(one)[1]).items().isdisjoint(expected.items())
    alone.close()
    together.close()


def test_one_rank_that_cannot_write_aborts_the_save_on_all_and_is_named(tmp_path: Path) -> None:
    class FullOnce(PosixStore):
        crosses_processes = False
        failures = 1

        def put(self, key: str, blocks: Iterable[memoryview]) -> None:
            if self.failures and key.endswith(".bin"):
                self.failures -= 1
                raise StoreFull("put", key, "the disk or the quota is full; free some space")
            super().put(key, blocks)

    together = Together(PosixStore(tmp_path), {1: FullOnce(tmp_path)})
    for result in together.save(1):
        assert result.abort is not None
        assert "rank 1 could not save (put)" in str(result.abort)
        assert "full" in str(result.abort)
    assert PosixStore(tmp_path).list("data/") == {}
    assert all(result.commit is not None for result in together.save(2))
    together.close()


def test_a_rank_that_says_nothing_is_named_when_the_deadline_is_over(tmp_path: Path) -> None:
    together = Together(PosixStore(tmp_path), deadline_seconds=0.3)
    together.savers[0].save(1, state_of(1), {})
    (result,) = together.savers[0].wait(SECONDS)
    assert "rank 1 could not save" in str(result.abort)
    assert "no answer from rank 1" in str(result.abort)
    together.close()


def test_one_rank_that_cannot_read_moves_all_ranks_to_the_commit_before(tmp_path: Path) -> None:
    two_commits(tmp_path)

    class Blind(PosixStore):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if key.endswith(".bin") and "-20-" in key:
                flip_bit(tmp_path / key, 0)
            return super().get(key, start, length)

    store, board = PosixStore(tmp_path), HashStore()
    held = claim(store)
    states = [state_of(-1), state_of(-1)]
    first_has_read = threading.Event()

    class Late(Blind):
        def list(self, prefix: str) -> dict[str, int]:
            assert first_has_read.wait(SECONDS)
            return super().list(prefix)

    def restored(rank: int) -> Restored | None:
        channel = Channel(board, "attempt")
        if rank == 0:
            post = channel.post

            def post_and_tell(key: str, data: bytes) -> None:
                post(key, data)
                if "vote" in key:
                    first_has_read.set()

            channel.post = post_and_tell  # type: ignore[method-assign]
        return restore(
            store=store if rank == 0 else Late(tmp_path),
            channel=channel,
            claim=held if rank == 0 else None,
            rank=rank,
            world_size=2,
            state=states[rank],
        )

    first, second = in_threads(restored)
    assert first == second
    assert first.commit.step == 10
    assert "rank 1: " in next(iter(first.skipped.values()))
    for state in states:
        assert_state(state, 10)


def test_restoring_names_the_rank_that_does_not_answer(tmp_path: Path) -> None:
    two_commits(tmp_path)
    store = PosixStore(tmp_path)
    channel = Channel(HashStore(), "attempt")
    with pytest.raises(PeerSilent, match="no answer from rank 1 to restore/0/vote"):
        restore(
            store=store,
            channel=channel,
            claim=claim(store),
            rank=0,
            world_size=2,
            state=state_of(0),
            deadline_seconds=0.2,
        )


def test_a_save_that_starts_while_the_background_work_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    is_staging = threading.Event()

    class DyingStore(FaultyStore):
        def read_back(self, key: str, block_bytes: int) -> Iterator[memoryview]:
            assert is_staging.wait(SECONDS)
            raise Crash
            yield

    alone = start(DyingStore(MemoryStore()))
    assert alone.save(1).commit is not None
    stage = alone.saver._stage

    def stage_late(state: dict[str, torch.Tensor]) -> None:
        stage(state)
        is_staging.set()
        alone.saver._thread.join(SECONDS)

    monkeypatch.setattr(alone.saver, "_stage", stage_late)
    with pytest.raises(Crash):
        alone.saver.save(2, state_of(2), {})
    assert alone.saver.is_free(0)
    alone.close()


def test_an_attempt_whose_files_a_successor_has_deleted_is_fenced_and_calls_nothing_damaged():
    store = MemoryStore()
    first = start(store)
    first.save(1)
    first.close()
    zombie = claim(store)
    successor = start(store, keep=1)
    for step in (2, 3, 4):
        successor.save(step)
    successor.close()
    with pytest.raises(Fenced):
        restore(
            store=store, channel=Channel(HashStore(), "zombie"), claim=zombie, rank=0, world_size=1,
            state=state_of(-1), deadline_seconds=SECONDS,
        )  # fmt: skip
