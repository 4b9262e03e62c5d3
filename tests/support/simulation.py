"""Attempts of one run on a simulated object store. A rank goes on only when it is told how its next operation ends.

Each attempt is the real code: claim, restore, save, commit, retire, done. Simulated are the store, the board on which
ranks leave messages for each other, the clock, and chance, so that the same turns always end the same.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from support.faulty_store import Crash, Fault, FaultyStore
from support.object_store import ObjectStore
from support.saving import assert_state, owner, state_of

from checkpoints.channel import Channel
from checkpoints.entry import Commit, Entry
from checkpoints.errors import CheckpointError, NoIntactCheckpoint, StoreError, StoreFull
from checkpoints.log import Claim, CommitLog
from checkpoints.restorer import Restored, restore
from checkpoints.saver import Saver
from checkpoints.store import Created, probe

SECONDS = 600.0  # of real time: only a defect lasts as long
LOG_SECONDS = 5.0  # of simulated time
LONG_SECONDS = 1000.0
TOKENS = 1000  # of an attempt: it never takes so many steps
_SAVE_FOLDER = re.compile(r"data/([0-9]+)-[^/]+/")


class Trouble(Enum):
    """What can go wrong beyond the faults of every store."""

    LATE = "the answer is lost, and it is done later, if at all"
    GIVEN_UP = "the same, and the time for it is up"
    SILENT = "another rank does not say what is waited for in time"


Ending = Fault | Trouble | None


class Clock:
    """Takes the place of the module `time`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wall = 1.8e9

    def monotonic(self) -> float:
        return self.seconds

    perf_counter = monotonic

    def time(self) -> float:
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class World:
    """What all attempts share. `late`: what the store may yet do. `falsified`: saves not stored as given."""

    bucket: ObjectStore = field(default_factory=ObjectStore)
    disks: tuple[ObjectStore, ...] = field(default_factory=lambda: (ObjectStore(), ObjectStore()))  # one of each host
    lost: set[str] = field(default_factory=set)  # folders that a disk has not, or not as they were
    clock: Clock = field(default_factory=Clock)
    full_for: int = 0  # so many more writes find no space
    is_slow: bool = False  # nothing of what is copied from disks arrives in time
    lies: int = 0  # so many more files are stored as something else than was given
    lies_about: str = ""  # whose keys end in that
    late: list[Callable[[], object]] = field(default_factory=list)
    falsified: set[str] = field(default_factory=set)
    planted: set[str] = field(default_factory=set)

    def enter(self) -> ExitStack:
        """The real code in this world, until the stack is closed: its clock, and random names that are not random.

        os.urandom is that of the whole process: nothing else runs in it meanwhile.
        """
        numbers = count(1)
        names = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(numbers):016x}" * 2))
        stack = ExitStack()
        for module in ("log", "entry", "committer", "channel", "saver"):
            stack.enter_context(patch(f"checkpoints.{module}.time", self.clock))
        for module in ("committer", "entry"):
            stack.enter_context(patch(f"checkpoints.{module}.uuid", names))
        stack.enter_context(patch("checkpoints.store.os.urandom", lambda size: next(numbers).to_bytes(size, "big")))
        return stack

    def is_whole(self, commit: Commit) -> bool:
        """In the store, as far as nothing has deleted it."""
        return commit.is_stored and commit.folder not in self.falsified

    def lose(self, host: int) -> None:
        """The machine is gone, with what its disk has had; another one takes its place."""
        for key in self.disks[host].list("data/"):
            self.lost.add(key.rpartition("/")[0])
            self.disks[host].delete(key)

    def is_on_a_disk(self, key: str) -> bool:
        return any(key in disk.list("data/") for disk in self.disks)

    def damage(self, host: int, key: str) -> None:
        """The disk keeps something else from here on."""
        self.lost.add(key.rpartition("/")[0])
        data = self.disks[host].get(key)
        self.disks[host].delete(key)
        self.disks[host].plant(key, bytes([data[0] ^ 1]) + data[1:])

    def can_be_read(self, commit: Commit, host: int | None) -> bool:
        """Whether an attempt on that host has to be able to start from it."""
        if commit.is_stored or host is None:
            return self.is_whole(commit)
        is_there = any(key.startswith(f"{commit.folder}/") for key in self.disks[host].list("data/"))
        return is_there and commit.folder not in self.falsified | self.lost


@dataclass(frozen=True)
class Ask:
    """What a rank is about to do: an operation of the store, or to wait for a message."""

    operation: str
    key: str

    @property
    def is_of_the_store(self) -> bool:
        return self.operation != "wait"

    def is_a(self, kind: str) -> bool:
        """Whether it is an operation of that kind. An append is a write of the log's next entry, however it is done."""
        if kind == "append":
            return self.operation in ("create", "put") and self.key.startswith("log/0")
        return self.operation == kind


class Turns:
    """Lets one rank wait before each of its operations until it is told how that one ends."""

    def __init__(self) -> None:
        self.asks: Ask | None = None
        self.is_over = False
        self.is_dead = False
        self._changed = threading.Condition()
        self._ending: Ending = None

    def ask(self, ask: Ask) -> Ending:
        with self._changed:
            assert self.asks is None, "a rank does one thing at a time"
            self.asks = ask
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.asks is None)
            return self._ending

    def end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def grant(self, ending: Ending) -> None:
        with self._changed:
            self._ending, self.asks = ending, None
            self._changed.notify_all()
        self.settle()

    def settle(self) -> None:
        with self._changed:
            is_settled = self._changed.wait_for(lambda: self.asks is not None or self.is_over, SECONDS)
        assert is_settled, "live: a rank neither ended nor asked for anything"


class _Late(StoreError):
    """There is no answer now; it is done later."""


class RankStore(FaultyStore):
    """What one rank sees of the object store, or of its host's disk."""

    def __init__(self, world: World, turns: Turns, inner: ObjectStore) -> None:
        self._world, self._turns = world, turns
        super().__init__(inner)
        self.epoch = 0  # of its attempt's claim; 0 before there is one
        self.was_hit = False
        self._trouble: Trouble | None = None

    @property
    def is_dead(self) -> bool:
        return self._turns.is_dead

    @is_dead.setter
    def is_dead(self, is_dead: bool) -> None:
        self._turns.is_dead |= is_dead

    def create(self, key: str, data: bytes) -> Created:
        try:
            return super().create(key, data)
        except _Late:
            self._world.late.append(lambda: self.inner.create(key, data))
            return Created.UNKNOWN

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        data = b"".join(blocks)
        if self._world.is_slow and self.inner is self._world.bucket and self._world.is_on_a_disk(key):
            raise StoreError("put", key, "there is no answer")
        try:
            super().put(key, self._as_stored(key, data))
        except _Late:
            self._world.late.append(lambda: self.inner.put(key, [memoryview(data)]))
            raise

    def die(self) -> None:
        self._die()

    def _as_stored(self, key: str, data: bytes) -> Iterator[memoryview]:
        if self._world.lies and key.endswith(self._world.lies_about):
            self._world.lies -= 1
            self._world.falsified.add(key.rpartition("/")[0])
            half = len(data) // 2
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        yield memoryview(data)

    def _enter(self, operation: str, key: str) -> Fault | None:
        if self.is_dead:
            raise Crash
        ending = self._turns.ask(Ask(operation, key))
        self.was_hit |= ending is not None
        self._trouble = ending if isinstance(ending, Trouble) else None
        self._fault = ending if isinstance(ending, Fault) else None
        self._at = self.operations + 1
        if operation == "delete":
            self._check_delete(key)
        if self._trouble is Trouble.GIVEN_UP:
            self._world.clock.sleep(LONG_SECONDS)
        if self._trouble in (Trouble.LATE, Trouble.GIVEN_UP):
            raise (_Late if operation in ("create", "put") else StoreError)(operation, key, "there is no answer")
        if self._world.full_for and ending is None and operation in ("create", "put"):
            self._world.full_for -= 1
            raise StoreFull(operation, key, "there is no space")
        return super()._enter(operation, key)

    def _check_delete(self, key: str) -> None:
        """Whoever looks now sees the state that this delete would harm."""
        if key.startswith("log/"):
            assert key.startswith("log/probe-"), f"write-once: {key} of the log is deleted"
        if key.startswith("data/"):
            found, entry = _SAVE_FOLDER.match(key), CommitLog(self._world.bucket).read()
            assert found is not None, f"no friendly fire: {key}, which is of no save, is deleted"
            assert int(found[1]) <= self.epoch, f"no friendly fire: epoch {self.epoch} deletes {key}"
            is_on_disk = self.inner is not self._world.bucket  # where there may be a copy of what the store has
            live = {commit.folder for commit in entry.live if not (is_on_disk and commit.is_stored)} if entry else set()
            assert key.rpartition("/")[0] not in live, f"no friendly fire: {key} of a live commit is deleted"


class Board:
    """The messages of one attempt's ranks, as one of them sees them: a KeyValueStore."""

    def __init__(self, messages: dict[str, Any], store: RankStore, turns: Turns) -> None:
        self._messages, self._store, self._turns = messages, store, turns

    def has(self, key: str) -> bool:
        return key in self._messages

    def set(self, key: str, value: Any) -> None:
        if self._store.is_dead:
            raise Crash
        self._messages[key] = value

    def get(self, key: str) -> bytes:
        return bytes(self._messages[key])

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        (key,) = keys
        if self._store.is_dead:
            raise Crash
        if key in self._messages:
            return
        ending = self._turns.ask(Ask("wait", key))
        if ending in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER):
            self._store.die()
        if ending is Trouble.SILENT:
            raise RuntimeError("the time is up")

    def clone(self) -> Board:
        return self

    def delete_key(self, key: str) -> bool:
        return self._messages.pop(key, None) is not None


class _TellingSaver(Saver):
    """Tells of a commit before the rank goes on, so that what was told depends on the turns alone."""

    told: list[Commit]

    def _run(self, job: Any) -> Any:
        saved = super()._run(job)
        if saved is not None:
            self.told.append(saved.commit)
        return saved


class Rank:
    """One process of an attempt."""

    def __init__(self, attempt: Attempt, number: int) -> None:
        self.number = number
        self.turns = Turns()
        self.store = RankStore(attempt.world, self.turns, attempt.world.bucket)
        disk = None if attempt.host is None else attempt.world.disks[attempt.host]
        self.copies = None if disk is None else RankStore(attempt.world, self.turns, disk)
        self.board = Board(attempt.messages, self.store, self.turns)
        self.ended_with: BaseException | None = None  # None also for a good end
        self.failure: BaseException | None = None  # what no attempt may end with
        self._attempt = attempt
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()
        self.turns.settle()

    @property
    def stores(self) -> list[RankStore]:
        return [self.store] if self.copies is None else [self.store, self.copies]

    @property
    def can_go_on(self) -> bool:
        asks = self.turns.asks
        return not self.turns.is_over and asks is not None and (asks.is_of_the_store or self.board.has(asks.key))

    def kill(self) -> None:
        if not self.turns.is_over:
            self.turns.grant(Fault.KILLED_BEFORE)
        self._thread.join(SECONDS)

    def _run(self) -> None:
        try:
            self._attempt.train(self)
        except (Crash, CheckpointError) as error:
            self.ended_with = error
        except BaseException as error:
            self.failure = error
        finally:
            self.turns.end()


class Attempt:
    """One attempt of the run, of one or two ranks: it goes on after the newest commit, and saves a few steps.

    host: on whose disk it keeps copies; None where it keeps none.
    """

    def __init__(
        self,
        world: World,
        number: int,
        *,
        ranks: int,
        keep: int,
        saves: int,
        is_finished: bool,
        host: int | None = None,
    ) -> None:
        self.world = world
        self.host = host
        self.number = number
        self.told: list[Commit] = []
        self.claimed: Entry | None = None
        self.started: dict[int, tuple[int, str] | None] = {}  # rank: the commit that it has started from
        self.messages: dict[str, Any] = {}
        self._keep, self._saves, self._is_finished = keep, saves, is_finished
        self.ranks = [Rank(self, rank) for rank in range(ranks)]

    def begin(self) -> None:
        for rank in self.ranks:
            rank.begin()

    @property
    def is_over(self) -> bool:
        return all(rank.turns.is_over for rank in self.ranks)

    @property
    def was_hit(self) -> bool:
        return any(store.was_hit for rank in self.ranks for store in rank.stores)

    def raise_failure(self) -> None:
        """Raises what a rank may not end with, such as that of an invariant that it has seen broken."""
        for rank in self.ranks:
            if rank.failure is not None:
                raise rank.failure
            if isinstance(rank.ended_with, NoIntactCheckpoint) and not self.was_hit and self.claimed is not None:
                whole = [commit for commit in self.claimed.live if self.world.is_whole(commit)]
                assert not whole, f"live: an attempt ended with {rank.ended_with}, and {whole[-1]} is whole"

    def train(self, rank: Rank) -> None:
        claim = self._claim(rank) if rank.number == 0 else None
        channel, state = Channel(rank.board, "attempt"), state_of(-1)
        restored = restore(
            store=rank.store, channel=channel, claim=claim, rank=rank.number, world_size=len(self.ranks), state=state,
            copies=rank.copies, deadline_seconds=SECONDS,
        )  # fmt: skip
        self._check_start(rank, restored, state)
        saver = _TellingSaver(
            store=rank.store, channel=channel, claim=claim, rank=rank.number, world_size=len(self.ranks),
            keep=self._keep, copies=rank.copies, deadline_seconds=SECONDS,
        )  # fmt: skip
        saver.told = self.told
        saver.prepare(state)
        first = restored.commit.step + 1 if restored else 1
        try:
            for step in range(first, first + self._saves):
                token = self.number * TOKENS + step  # what an attempt saves differs from what any other does
                is_last = self._is_finished and step == first + self._saves - 1
                saver.save(step, state_of(token), {"token": token}, to_store=is_last)
                saver.wait(SECONDS)
        finally:
            saver.close(SECONDS)
        if claim is not None and self._is_finished:
            claim.done()

    def _claim(self, rank: Rank) -> Claim:
        probe(rank.store)
        claim = CommitLog(rank.store, LOG_SECONDS).claim(owner())
        self.claimed = claim.state
        for each in self.ranks:
            for store in each.stores:
                store.epoch = claim.epoch
        return claim

    def _check_start(self, rank: Rank, restored: Restored | None, state: dict[str, Any]) -> None:
        assert self.claimed is not None
        commit, skipped = (restored.commit, restored.skipped) if restored else (None, {})
        self.started[rank.number] = (commit.n, commit.manifest_digest) if commit else None
        assert len(set(self.started.values())) == 1, f"agree: the ranks start from {self.started}"
        if restored is not None:
            token = restored.metadata.get("token")
            assert isinstance(token, int), "agree: a rank starts from a commit that it has not loaded"
            assert_state(state, token)
        newest = [live.n for live in self.claimed.live if live.n not in skipped][-1:]
        assert newest == ([commit.n] if commit else []), f"durable: it starts from {commit}, and {newest} is newer"
        passed_over = [
            live for live in self.claimed.live if live.n in skipped and self.world.can_be_read(live, self.host)
        ]
        assert not passed_over or self.was_hit, f"durable: {passed_over} are passed over without a reason"
