"""Ranks on several hosts, each with a disk of its own, which read from the disks of the others what theirs lacks."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.faulty_store import FaultyStore
from support.saving import SECONDS, assert_state, claim, live, state_of
from torch.distributed import HashStore

from checkpoints import peers as peers_module
from checkpoints.channel import Channel
from checkpoints.errors import StoreError
from checkpoints.memory_store import MemoryStore
from checkpoints.owner import host_name
from checkpoints.peers import Peers
from checkpoints.restorer import Restored, restore
from checkpoints.saver import Saver, SaveResult

LOOPBACK = "127.0.0.1"


class Bucket(FaultyStore):
    """A store that may be cut off: it then takes no files of ranks. It remembers which of those were read."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.is_cut_off = False
        self.read: list[str] = []

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        if self.is_cut_off and key.endswith(".bin"):
            raise StoreError("put", key, "the network is gone")
        super().put(key, blocks)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key.endswith(".bin"):
            self.read.append(key)
        return super().get(key, start, length)


def on_hosts(bucket: Bucket, disks: Sequence[MemoryStore], steps: range = range(0)) -> Restored | None:
    """Restore and then save these steps, with a rank on the host of each disk; from what all have started."""
    held, board = claim(bucket), HashStore()

    def attempt(rank: int) -> Restored | None:
        channel, state, own = Channel(board, "attempt"), state_of(-1), held if rank == 0 else None
        restored = restore(
            store=bucket, channel=channel, claim=own, rank=rank, world_size=len(disks), state=state,
            copies=disks[rank], address=LOOPBACK, deadline_seconds=SECONDS,
        )  # fmt: skip
        if restored is not None:
            assert_state(state, restored.commit.step)
        saver = Saver(
            store=bucket, channel=channel, claim=own, rank=rank, world_size=len(disks), keep=2, copies=disks[rank],
            deadline_seconds=SECONDS,
        )  # fmt: skip
        saver.prepare(state)
        for step in steps:
            saver.save(step, state_of(step), {})
            results: list[SaveResult] = saver.wait(SECONDS)
            assert results[0].commit is not None
        saver.close(SECONDS)
        return restored

    with ThreadPoolExecutor(len(disks)) as pool:
        first, *others = pool.map(attempt, range(len(disks)))
    assert all(other == first for other in others)
    return first


def saved(hosts: int, *, ranks: int = 1, is_cut_off: bool = True) -> tuple[Bucket, list[MemoryStore]]:
    """A store that has step 1, and the disk of each rank, with steps 2 and 3, which have not reached the store if it is
    cut off. So many ranks on one host share a disk."""
    bucket, disks = Bucket(), [disk for disk in [MemoryStore() for _ in range(hosts)] for _ in range(ranks)]
    on_hosts(bucket, disks, range(1, 2))
    bucket.is_cut_off = is_cut_off
    on_hosts(bucket, disks, range(2, 4))
    assert [commit.is_stored for commit in live(bucket)][-1] is not is_cut_off
    bucket.read.clear()
    return bucket, disks


def damage(disk: MemoryStore) -> None:
    for key in disk.list("data/"):
        data = disk.get(key)
        disk.put(key, [memoryview(data[:100] + bytes([data[100] ^ 1]) + data[101:])])


@pytest.mark.parametrize(("hosts", "ranks"), [(2, 1), (3, 1), (2, 2)])
def test_the_ranks_of_several_hosts_go_on_from_their_disks_alone(hosts: int, ranks: int) -> None:
    bucket, disks = saved(hosts, ranks=ranks)
    assert not disks[0].list("data/").keys() & disks[-1].list("data/").keys()
    restored = on_hosts(bucket, disks)
    assert restored is not None
    assert (restored.commit.step, restored.skipped, bucket.read) == (3, {}, [])
    restored = on_hosts(bucket, disks[::-1])  # which rank is on which host does not matter
    assert restored is not None
    assert (restored.commit.step, restored.skipped, bucket.read) == (3, {}, [])


@pytest.mark.parametrize("lost", [0, 2])
def test_with_the_disk_of_one_host_goes_what_had_not_reached_the_store(lost: int) -> None:
    bucket, disks = saved(3)
    disks[lost] = MemoryStore()
    restored = on_hosts(bucket, disks)
    assert restored is not None
    assert restored.commit.step == 1
    assert len(restored.skipped) == 2
    reason = f"it had not reached the store, and was on the disk of {host_name()} alone"
    assert all(reason in each for each in restored.skipped.values())


@pytest.mark.parametrize("spoil", [damage, lambda disk: [disk.delete(key) for key in disk.list("data/")]])
def test_what_one_disk_has_lost_or_damaged_is_read_from_the_store_and_the_rest_is_not(
    spoil: Callable[[MemoryStore], object],
) -> None:
    bucket, disks = saved(2, is_cut_off=False)
    spoil(disks[1])
    restored = on_hosts(bucket, disks)
    assert restored is not None
    assert (restored.commit.step, restored.skipped) == (3, {})
    assert {key.rpartition("/")[2] for key in bucket.read} == {"rank-00001.bin"}


def test_a_smaller_attempt_passes_over_what_is_on_a_disk_that_it_has_not() -> None:
    bucket, disks = saved(2)
    restored = on_hosts(bucket, disks[:1])
    assert restored is not None
    assert restored.commit.step == 1


def met(disks: Sequence[MemoryStore], bucket: Bucket) -> list[Peers]:
    board, commit = HashStore(), live(bucket)[-1]
    peers = [Peers(disk, LOOPBACK, Channel(board, "a"), rank, len(disks), SECONDS) for rank, disk in enumerate(disks)]
    with ThreadPoolExecutor(len(disks)) as pool:
        list(pool.map(lambda each: each.meet(commit), peers))
    return peers


def test_who_has_no_token_is_told_nothing_and_who_has_one_can_ask_for_copies_alone() -> None:
    bucket, disks = saved(2)
    first, second = met(disks, bucket)
    with closing(first), closing(second):
        (key,) = disks[1].list(f"{live(bucket)[-1].folder}/")
        assert first.get(key, 0, 50) == disks[1].get(key, 0, 50)
        holder = first._holders[1]
        with closing(http.client.HTTPConnection(holder.address, holder.port, timeout=SECONDS)) as connection:
            for asked in (f"{'0' * 64}/0/50/{key}", f"{holder.token}/0/50/../../etc/passwd", f"{holder.token}/{key}"):
                connection.request("GET", f"/{asked}")
                response = connection.getresponse()
                assert (response.status, b"root" in response.read()) == (404, False)


def test_a_rank_that_does_not_answer_is_waited_for_once_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, disks = saved(2)
    asked: list[str] = []
    is_over = threading.Event()

    def hang(handler: object, key: str, start: int, length: int) -> None:
        asked.append(key)
        is_over.wait(SECONDS)

    monkeypatch.setattr(peers_module._Handler, "_give", hang)
    monkeypatch.setattr(peers_module, "SILENCE_SECONDS", 0.2)
    restored = on_hosts(bucket, disks)
    is_over.set()
    assert restored is not None
    assert (restored.commit.step, len(restored.skipped)) == (1, 2)
    assert all("rank 1 did not answer" in reason for reason in restored.skipped.values())
    assert len(asked) == len(disks)  # once by each rank, though two commits were tried
