"""Several attempts of one run at once, on a simulated object store, in an order and with faults drawn from a seed.

Each attempt is a thread, and exactly one of them runs: until its next operation of the store.
"""

from __future__ import annotations

import argparse
import threading
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from unittest.mock import patch

from support.crash_points import attempt, check
from support.faulty_store import Crash, Fault, FaultyStore
from support.object_store import ObjectStore

from checkpoints.entry import Commit, Entry, Kind
from checkpoints.errors import StoreError, StoreFull
from checkpoints.log import CommitLog
from checkpoints.reader import verify
from checkpoints.store import Created

SECONDS = 120.0
WRITERS = 3
ATTEMPTS = 7  # of all writers together
FAULT_SHARE = 0.04
PAUSE_SHARE = 0.05


class Trouble(Enum):
    """Faults that an object store has beyond those of every store."""

    DELAYED = "the answer is lost now, and the create is done later"
    FULL = "there is no space"


class Turns:
    """Lets one attempt wait before each of its operations until it is told how that one ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fault: Fault | Trouble | None = None
        self._is_waiting = False
        self.is_over = False

    def ask(self) -> Fault | Trouble | None:
        with self._changed:
            self._is_waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_waiting)
            return self._fault

    def end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def grant(self, fault: Fault | Trouble | None) -> None:
        with self._changed:
            self._fault = fault
            self._is_waiting = False
            self._changed.notify_all()
        self.settle()

    def settle(self) -> None:
        with self._changed:
            is_settled = self._changed.wait_for(lambda: self._is_waiting or self.is_over, SECONDS)
        assert is_settled, "an attempt neither ended nor asked the store for anything"


class ScheduledStore(FaultyStore):
    """What one attempt sees of the object store."""

    def __init__(self, bucket: ObjectStore, turns: Turns, delayed: list[tuple[str, bytes]]) -> None:
        super().__init__(bucket)
        self._turns = turns
        self._delayed = delayed
        self._trouble: Trouble | None = None

    def create(self, key: str, data: bytes) -> Created:
        try:
            return super().create(key, data)
        except StoreError:
            if self._trouble is not Trouble.DELAYED:
                raise
        self._delayed.append((key, data))
        return Created.UNKNOWN

    def _enter(self, operation: str, key: str) -> Fault | None:
        if self.is_dead:
            raise Crash
        told = self._turns.ask()
        self._trouble = told if isinstance(told, Trouble) else None
        self._fault = told if isinstance(told, Fault) else None
        self._at = self.operations + 1
        if self._trouble is Trouble.DELAYED and operation == "create":
            raise StoreError(operation, key, "it takes long")
        if self._trouble is Trouble.FULL and operation in ("create", "put"):
            raise StoreFull(operation, key, "there is no space")
        return super()._enter(operation, key)


@dataclass
class Attempt:
    """A running attempt, and what it was told."""

    turns: Turns = field(default_factory=Turns)
    told: list[Commit] = field(default_factory=list)
    failure: BaseException | None = None
    wakes_at: int = 0  # paused until there have been so many operations

    def start(self, bucket: ObjectStore, delayed: list[tuple[str, bytes]], steps: range, keep: int) -> None:
        def run() -> None:
            try:
                attempt(ScheduledStore(bucket, self.turns, delayed), steps, keep, self.told)
            except BaseException as error:
                self.failure = error
            finally:
                self.turns.end()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        self.turns.settle()


class Invariants:
    """What must hold after every single operation."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket
        self._entries: list[Entry] = []
        self._seen: dict[str, int] = {}

    def check(self, told: list[Commit]) -> None:
        keys = self._bucket.list("")
        if keys != self._seen:
            self._seen = keys
            self._check_log()
            for commit in self._live():
                verify(self._bucket, commit)  # whole
            assert not self._bucket.overwritten, "write-once: a key was written twice"
        committed = {entry.live[-1].n for entry in self._entries if entry.kind is Kind.COMMIT}
        assert {commit.n for commit in told} <= committed, "durable: an acknowledged commit is not in the log"
        newest = max((commit.n for commit in told), default=0)
        assert not committed or self._live()[-1:], "never empty: all commits are gone"
        assert not told or self._live()[-1].n >= newest, "durable: the newest acknowledged commit is not live"

    def _live(self) -> tuple[Commit, ...]:
        return self._entries[-1].live if self._entries else ()

    def _check_log(self) -> None:
        log = CommitLog(self._bucket)
        known = len(self._entries)
        entry = log.newest_after(self._entries[-1]) if self._entries else log.read()
        if entry is None or (self._entries and entry.n == self._entries[-1].n):
            return
        self._entries, damage = log.history()
        assert not damage, str(damage[0])
        assert [entry.n for entry in self._entries] == list(range(1, len(self._entries) + 1))
        assert len({entry.nonce for entry in self._entries}) == len(self._entries), (
            "idempotent: an entry is there twice"
        )
        for entry in self._entries[max(known, 1) :]:
            before = self._entries[entry.n - 2]
            is_claim = entry.kind is Kind.CLAIM
            assert entry.epoch == before.epoch + is_claim, "fenced: an entry is not of the last claim"
            if entry.kind is Kind.COMMIT:
                own = [commit.step for commit in entry.live if commit.epoch == entry.epoch]
                assert own == sorted(set(own)), "progress: steps do not rise"


def run_schedule(seed: int) -> int:
    """Run one schedule, and what follows when the faults have stopped. The number of operations."""
    random = Random(seed)
    bucket = ObjectStore()
    delayed: list[tuple[str, bytes]] = []
    invariants = Invariants(bucket)
    keep = random.choice([1, 1, 2])
    attempts: list[Attempt] = []
    running: list[Attempt] = []
    operations = 0
    with patch("checkpoints.log._PAUSE_SECONDS", 0.0005):
        while running or len(attempts) < ATTEMPTS:
            awake = [each for each in running if each.wakes_at <= operations]
            may_start = len(attempts) < ATTEMPTS and len(running) < WRITERS
            if may_start and (not awake or random.random() < 0.05):
                running.append(Attempt())
                attempts.append(running[-1])
                first = 10 * len(attempts)
                running[-1].start(bucket, delayed, range(first, first + 3), keep)
                awake.append(running[-1])
            awake = awake or running
            turn = awake[0] if random.random() < 0.6 else random.choice(awake)
            if random.random() < PAUSE_SHARE:
                turn.wakes_at = operations + random.randrange(10, 150)
            if not turn.turns.is_over:
                is_hit = random.random() < FAULT_SHARE
                turn.turns.grant(random.choice([*Fault, *Trouble]) if is_hit else None)
                operations += 1
            if delayed and random.random() < 0.1:
                bucket.create(*delayed.pop(random.randrange(len(delayed))))
            invariants.check([commit for each in attempts for commit in list(each.told)])
            running = [each for each in running if not each.turns.is_over]
        for key, data in delayed:
            bucket.create(key, data)
    for each in attempts:
        each.thread.join(SECONDS)
        if each.failure is not None:
            raise each.failure
    check(lambda: bucket, [commit for each in attempts for commit in each.told])
    return operations


def run_schedules(seeds: range) -> int:
    """The number of operations in all of them."""
    operations = 0
    for seed in seeds:
        try:
            operations += run_schedule(seed)
        except BaseException:
            print(f"the schedule of seed {seed} failed", flush=True)
            raise
    return operations


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/campaign/schedules", description="Run random schedules.")
    parser.add_argument("--examples", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed (default: %(default)s)")
    options = parser.parse_args()
    operations = run_schedules(range(options.seed, options.seed + options.examples))
    print(f"{options.examples} schedules with {operations} operations: no invariant was broken")


if __name__ == "__main__":
    main()
