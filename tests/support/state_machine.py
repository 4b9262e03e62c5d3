"""Up to three attempts of one run at once, in an order and with troubles that Hypothesis draws, and shrinks.

The twelve invariants of a run's checkpoints are looked at after each single operation of the store. Which rule or check
stands for which of them: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from support.faulty_store import Fault
from support.object_store import ObjectStore
from support.saving import claim, state_of
from support.simulation import LONG_SECONDS, Attempt, Ending, Rank, Trouble, World
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.entry import Commit, Entry, Kind, entry_key
from checkpoints.errors import CorruptCheckpoint, KeyMissing, NoIntactCheckpoint
from checkpoints.log import CommitLog
from checkpoints.policy import LOCAL_COPIES, orphans, retirable
from checkpoints.reader import open_commit, verify, verify_file
from checkpoints.restorer import restore

WRITERS = 3
ATTEMPTS = 10  # of all writers together
MOST_TURNS = 3000
STEPS = 50  # of one example

executed: list[str] = []  # what code in the storage has done: nothing


def execute(what: str) -> None:
    executed.append(what)


class Payload:
    """A pickle that tells when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return execute, ("a pickle in the storage",)


class Invariants:
    """What must hold after every single operation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._entries: list[Entry] = []
        self._seen: dict[str, int] = {}
        self._was_whole = False  # whether there ever was a live commit that the store has kept as it was given

    @property
    def live(self) -> tuple[Commit, ...]:
        return self._entries[-1].live if self._entries else ()

    @property
    def whole(self) -> list[Commit]:
        return [commit for commit in self.live if self._world.is_whole(commit)]

    def check(self, told: list[Commit]) -> None:
        bucket = self._world.bucket
        keys = bucket.list("")
        if keys != self._seen:
            self._seen = keys
            self._read_on()
            try:
                for commit in self.whole:
                    verify(bucket, commit)
                self._check_copies()
            except CorruptCheckpoint as error:
                raise AssertionError(f"whole: {error}") from error
            twice = [key for key in bucket.overwritten if key.startswith(("log/0", "data/"))]
            assert not twice, f"write-once: {twice} were written twice"
        self._was_whole |= bool(self.whole)
        assert self.whole or not self._was_whole, "never empty: no whole commit is live"
        committed = {entry.live[-1].n for entry in self._entries if entry.kind is Kind.COMMIT}
        assert {commit.n for commit in told} <= committed, "durable: an acknowledged commit is not in the log"
        newest = max((commit.n for commit in told), default=0)
        assert not told or self.live[-1].n >= newest, "durable: the newest acknowledged commit is not live"
        assert not executed, f"inert: {executed[0]} was executed"

    def _check_copies(self) -> None:
        """What is on disks of hosts alone is there, until the host is lost."""
        world = self._world
        for commit in self.live:
            if not commit.is_stored and commit.folder not in world.falsified | world.lost:
                manifest = open_commit(world.bucket, commit).manifest
                (disk,) = [disk for disk in world.disks if disk.list(f"{commit.folder}/")]
                for file in manifest.files:
                    verify_file(disk, f"{commit.folder}/{file.path}", file)

    def _read_on(self) -> None:
        while (entry := self._next()) is not None:
            if self._entries:
                self._check_step(self._entries[-1], entry)
            assert entry.nonce not in {each.nonce for each in self._entries}, "idempotent: an entry is there twice"
            self._entries.append(entry)

    def _next(self) -> Entry | None:
        n = len(self._entries) + 1
        try:
            return Entry.from_bytes(n, self._world.bucket.get(entry_key(n)))
        except KeyMissing:
            return None

    def _check_step(self, before: Entry, entry: Entry) -> None:
        """What one entry may change."""
        assert entry.prev == before.digest, "fenced: an entry does not follow the one before it"
        assert entry.epoch == before.epoch + (entry.kind is Kind.CLAIM), "fenced: an entry is not of the last claim"
        gone = {commit.n for commit in before.live} - {commit.n for commit in entry.live}
        assert not gone or entry.kind is Kind.RETIRE, f"durable: {entry.kind} has dropped {gone}"
        assert not [commit for commit in before.live if commit.n in gone and commit.is_pinned], "a pinned one is gone"
        lost = {c.n for c in before.live if c.is_stored} - {c.n for c in entry.live if c.is_stored} - gone
        assert not lost, f"durable: {lost} were in the store, and the log has forgotten it"
        if entry.kind is Kind.STORED:
            assert entry.body["commit"] in {c.n for c in before.live if not c.is_stored}, "idempotent: it was stored"
        if entry.kind is Kind.COMMIT:
            assert before.commits or entry.live[-1].is_stored, "durable: the first commit is on a disk alone"
            own = [commit.step for commit in entry.live if commit.epoch == entry.epoch]
            assert own == sorted(set(own)), "progress: steps do not rise"


PLACES = st.integers(0, WRITERS - 1)
TURNS = st.sampled_from([0, 1, 3, 8, 20, 50])
SAVES = st.sampled_from([1, 3, 6])
NUMBERS_OF_RANKS = st.sampled_from([1, 2])
RANKS = st.integers(0, 1)
HOSTS = st.sampled_from([None, 0, 1])  # on whose disk an attempt keeps copies
ENDINGS = st.sampled_from([*Fault, Trouble.LATE, Trouble.GIVEN_UP])
OPERATIONS = st.sampled_from(["append", "create", "put", "get", "read back", "list", "delete"])
HINTS = {  # what somebody may leave in a bucket, and what no decision may look at
    "latest": b"1",
    "HINT": b"1",
    "log/latest": b"1",
    "log/000000000001.json.bak": b"{}",
    "log/000000000099.tmp": b"",
    "data/latest": b"1",
    "data/../log/000000000001.json": b"{}",
    "data/1-1-aa/../../../etc/passwd": b"",
    "data/999-1-aa/MANIFEST.json": b"{}",
}


class Machine(RuleBasedStateMachine):
    """One run, from an empty store on."""

    examples = operations = 0  # of all machines

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.attempts: list[Attempt] = []
        self._invariants = Invariants(self.world)
        self._entered = self.world.enter()
        executed.clear()
        Machine.examples += 1

    @property
    def running(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if not attempt.is_over]

    @precondition(lambda self: len(self.running) < WRITERS and len(self.attempts) < ATTEMPTS)
    @rule(ranks=NUMBERS_OF_RANKS, keep=st.integers(1, 2), saves=SAVES, is_finished=st.booleans(), host=HOSTS)
    def start(self, ranks: int, keep: int, saves: int, is_finished: bool, host: int | None = None) -> None:
        """Start, or restart: whoever is at work meanwhile becomes a zombie once the new attempt has its claim."""
        number = len(self.attempts) + 1
        attempt = Attempt(self.world, number, ranks=ranks, keep=keep, saves=saves, is_finished=is_finished, host=host)
        self.attempts.append(attempt)
        attempt.begin()

    @precondition(lambda self: self.running)
    @rule(which=PLACES, turns=TURNS, is_reversed=st.booleans())
    def proceed(self, which: int, turns: int, is_reversed: bool) -> None:
        """Who is not chosen is paused; a zombie that is chosen wakes."""
        self._proceed(self._chosen(which), turns, is_reversed=is_reversed)

    @precondition(lambda self: self.running and len(self.attempts) < ATTEMPTS)
    @rule(which=PLACES, turns=TURNS, operation=OPERATIONS, ranks=NUMBERS_OF_RANKS, saves=SAVES, host=HOSTS)
    def overtake(self, which: int, turns: int, operation: str, ranks: int, saves: int, host: int | None) -> None:
        """While rank 0 sleeps before its next such operation, another attempt runs from its start to its end."""
        attempt = self._chosen(which)
        self._proceed(attempt, turns)
        self._go_to(attempt, attempt.ranks[0], operation)
        self.start(ranks=ranks, keep=1, saves=saves, is_finished=False, host=host)
        self._finish(self.attempts[-1])

    @property
    def _copies(self) -> list[tuple[int, str]]:
        """Where the newest commit is on a disk: which host's, and the file."""
        folder = self._invariants.live[-1].folder if self._invariants.live else "data/none"
        return [(host, key) for host, disk in enumerate(self.world.disks) for key in disk.list(f"{folder}/")]

    @precondition(lambda self: self._invariants.live and len(self.running) < WRITERS and len(self.attempts) < ATTEMPTS)
    @rule(rank=RANKS, ending=ENDINGS)
    def start_with_a_read_that_fails(self, rank: int, ending: Ending) -> None:
        """One of two ranks does not get what it asks for of the commit that they should start from."""
        self.start(ranks=2, keep=1, saves=1, is_finished=False)
        attempt = self.attempts[-1]
        self._go_to(attempt, attempt.ranks[0], "append")
        self._proceed(attempt, 1)
        self._hit(attempt, attempt.ranks[rank], "get", ending)

    @precondition(lambda self: self.running)
    @rule(which=PLACES)
    def run_to_its_end(self, which: int) -> None:
        self._finish(self._chosen(which))

    @precondition(lambda self: self.running)
    @rule(which=PLACES, turns=TURNS, rank=RANKS, operation=OPERATIONS, ending=ENDINGS)
    def hit(self, which: int, turns: int, rank: int, operation: str, ending: Ending) -> None:
        """After some turns, the rank's next operation of that kind goes wrong."""
        attempt = self._chosen(which)
        self._proceed(attempt, turns)
        self._hit(attempt, attempt.ranks[rank % len(attempt.ranks)], operation, ending)

    @precondition(lambda self: self.running)
    @rule(which=PLACES, ending=ENDINGS)
    def hit_a_commit(self, which: int, ending: Ending) -> None:
        """The operation that makes the attempt's next save a commit goes wrong."""
        attempt = self._chosen(which)
        coordinator = attempt.ranks[0]
        self._go_to(attempt, coordinator, "put", "/MANIFEST.json")
        self._hit(attempt, coordinator, "append", ending)

    @precondition(lambda self: self.running)
    @rule(which=PLACES, turns=TURNS, rank=RANKS)
    def kill(self, which: int, turns: int, rank: int) -> None:
        """SIGKILL of one rank, after some turns; the others find out by waiting."""
        attempt = self._chosen(which)
        self._proceed(attempt, turns)
        attempt.ranks[rank % len(attempt.ranks)].kill()
        attempt.raise_failure()
        self._check()

    @rule(host=st.integers(0, 1))
    def lose_a_machine(self, host: int) -> None:
        """With its ranks and its disk."""
        for attempt in self.running:
            if attempt.host == host:
                for rank in attempt.ranks:
                    rank.kill()
                attempt.raise_failure()
        self.world.lose(host)
        self._check()

    @precondition(lambda self: self._copies and len(self.running) < WRITERS and len(self.attempts) < ATTEMPTS)
    @rule(which=PLACES, ranks=NUMBERS_OF_RANKS)
    def start_beside_a_damaged_copy(self, which: int, ranks: int) -> None:
        host, key = self._copies[which % len(self._copies)]
        self.world.damage(host, key)
        self.start(ranks=ranks, keep=1, saves=1, is_finished=False, host=host)

    @precondition(lambda self: self.running)
    @rule(which=PLACES, turns=TURNS)
    def lose_patience(self, which: int, turns: int) -> None:
        """After some turns, the first rank that waits for another one waits no longer."""
        attempt = self._chosen(which)
        self._proceed(attempt, turns)
        for rank in attempt.ranks:
            if rank.turns.asks is not None and not rank.turns.asks.is_of_the_store and not rank.turns.is_over:
                return self._grant(attempt, rank, Trouble.SILENT)
        return None

    @precondition(lambda self: self.world.late)
    @rule(which=st.integers(0, 9), is_lost=st.booleans())
    def do_late(self, which: int, is_lost: bool) -> None:
        """What the store had not answered is done now, whatever its writer has done since, or never."""
        late = self.world.late.pop(which % len(self.world.late))
        if not is_lost:
            late()
        self._check()

    @rule(is_slow=st.booleans())
    def change_the_network(self, is_slow: bool) -> None:
        """What is on disks of hosts alone stays there, as long as the network is slow."""
        self.world.is_slow = is_slow

    @rule(writes=st.integers(1, 3))
    def fill(self, writes: int) -> None:
        """So many writes find no space; then there is some again."""
        self.world.full_for = writes

    @precondition(lambda self: self._invariants.whole)
    @rule(lies=st.integers(1, 2), about=st.sampled_from([".bin", "/MANIFEST.json"]))
    def lie(self, lies: int, about: str) -> None:
        """Of the next such files the store keeps something else than it is given, and says that all is well."""
        self.world.lies, self.world.lies_about = lies, about

    @precondition(lambda self: self._invariants.live)
    @rule(which=PLACES, is_pinned=st.booleans())
    def pin(self, which: int, is_pinned: bool) -> None:
        """Somebody without a claim writes to the log, too."""
        live = self._invariants.live
        commit = live[which % len(live)]
        if commit.is_stored:  # else it is refused
            CommitLog(self.world.bucket).pin(commit.n, is_pinned=is_pinned)
        self._check()

    @rule(key=st.sampled_from(sorted(HINTS)))
    def leave_a_hint(self, key: str) -> None:
        self._plant(key, HINTS[key])

    @precondition(lambda self: self._invariants.live)
    @rule(which=PLACES, name=st.sampled_from(["state.pt", ".metadata", "metadata.pkl"]))
    def leave_a_pickle(self, which: int, name: str) -> None:
        live = self._invariants.live
        self._plant(f"{live[which % len(live)].folder}/{name}", pickle.dumps(Payload()))

    @rule(is_back=st.booleans())
    def move_the_clock(self, is_back: bool) -> None:
        """Time passes, and people set the clock."""
        self.world.clock.seconds += LONG_SECONDS
        self.world.clock.wall = 0.0 if is_back else 4e9

    @rule()
    def decide_elsewhere(self) -> None:
        """A copy of the store, listed the other way round, with hints that lie, at another time: the same decisions."""
        wall = self.world.clock.wall
        here = _decisions(self.world.bucket.copy().copy())
        copy = self.world.bucket.copy()
        for key, data in HINTS.items():
            copy.plant(key, data)
        self.world.clock.wall = wall - 1e8
        assert _decisions(copy) == here, "hint-free: something decides that is not in the log"
        self.world.clock.wall = wall

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self._end_well()
        finally:
            for attempt in self.attempts:
                for rank in attempt.ranks:
                    rank.kill()
            self._entered.close()

    def _end_well(self) -> None:
        """The troubles stop, everything comes to its end, and one more attempt finds all in order."""
        self.world.full_for = self.world.lies = 0
        self.world.is_slow = False
        for attempt in self.running:
            self._finish(attempt)
        while self.world.late:
            self.do_late(0, False)
        host = 0
        if len(self.attempts) % 2 and host in dict(self._copies):
            self.world.damage(host, dict(self._copies)[host])
        before = [commit for commit in self._invariants.live if self.world.can_be_read(commit, host)]
        if self._invariants.live and not before:
            return  # the store has lied about all that is live: there is nothing to go on from, and starts are refused
        number = len(self.attempts) + 1
        last = Attempt(self.world, number, ranks=1, keep=1, saves=4, is_finished=True, host=host)
        self.attempts.append(last)
        last.begin()
        self._finish(last)
        assert last.started, f"live: without faults an attempt ended with {last.ranks[0].ended_with}"
        newest = (before[-1].n, before[-1].manifest_digest) if before else None
        assert last.started[0] == newest, "durable: it does not start from the newest whole commit"
        assert len(last.told) == 4, "live: without faults a save did not become a commit"
        assert all(commit.is_stored for commit in self._invariants.live), "live: without faults a copy has not ended"
        left = self._folders(self.world.bucket) - {commit.folder for commit in self._invariants.live}
        assert not left, f"something was left behind: {left}"
        left = self._folders(self.world.disks[host])
        assert left <= {commit.folder for commit in last.told}, f"something was left behind on a disk: {left}"
        assert len(left) <= LOCAL_COPIES, f"too much is kept on a disk: {left}"

    def _folders(self, store: ObjectStore) -> set[str]:
        return {key.rpartition("/")[0] for key in store.list("data/").keys() - self.world.planted}

    def _proceed(self, attempt: Attempt, turns: int, *, is_reversed: bool = False) -> None:
        for _ in range(turns):
            if not attempt.is_over:
                self._turn(attempt, is_reversed=is_reversed)

    def _chosen(self, which: int) -> Attempt:
        return self.running[which % len(self.running)]

    def _go_to(self, attempt: Attempt, rank: Rank, operation: str, key_end: str = "") -> None:
        """Until the rank is about to do that, or over."""
        for _ in range(MOST_TURNS):
            asks = rank.turns.asks
            if asks is None or (asks.is_a(operation) and asks.key.endswith(key_end)):
                return
            self._turn(attempt)
        raise AssertionError("live: an attempt does not end")

    def _hit(self, attempt: Attempt, rank: Rank, operation: str, ending: Ending) -> None:
        self._go_to(attempt, rank, operation)
        if not rank.turns.is_over:
            self._grant(attempt, rank, ending)

    def _finish(self, attempt: Attempt) -> None:
        for _ in range(MOST_TURNS):
            if attempt.is_over:
                return
            self._turn(attempt)
        raise AssertionError("live: an attempt does not end")

    def _turn(self, attempt: Attempt, *, is_reversed: bool = False) -> None:
        """One operation of the attempt. When all of its ranks wait for one that is gone, the first one gives up."""
        ranks = attempt.ranks[::-1] if is_reversed else attempt.ranks
        for rank in ranks:
            if rank.can_go_on:
                return self._grant(attempt, rank, None)
        for rank in ranks:
            if not rank.turns.is_over:
                return self._grant(attempt, rank, Trouble.SILENT)
        return None

    def _grant(self, attempt: Attempt, rank: Rank, ending: Ending) -> None:
        Machine.operations += 1
        rank.turns.grant(ending)
        attempt.raise_failure()
        self._check()

    def _check(self) -> None:
        self._invariants.check([commit for attempt in self.attempts for commit in attempt.told])

    def _plant(self, key: str, data: bytes) -> None:
        self.world.bucket.plant(key, data)
        self.world.planted.add(key)
        self._check()


def _decisions(bucket: ObjectStore) -> tuple[Any, ...]:
    """What an attempt would start from, pass over, give up and delete."""
    entry = CommitLog(bucket).read()
    held = claim(bucket)
    would_go = retirable(entry, 1) if entry else ()
    would_delete = sorted(key for key in orphans(bucket.list("data/"), held.state) if key not in HINTS)
    try:
        restored = restore(
            store=bucket, channel=Channel(HashStore(), "copy"), claim=held, rank=0, world_size=1, state=state_of(-1)
        )
    except NoIntactCheckpoint as error:
        return would_go, would_delete, error.skipped
    return would_go, would_delete, restored and (restored.commit.n, restored.skipped)


def run(examples: int, *, seed: int | None = None, **options: Any) -> int:
    """The number of operations in that many examples. Raises what is broken, and prints the steps that break it."""
    machine = Machine if seed is None else hypothesis.seed(seed)(Machine)
    before = Machine.operations
    asked = settings(
        max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, **options,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=asked)
    return Machine.operations - before


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/campaign/schedules", description="Run random schedules.")
    parser.add_argument("--examples", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    options = parser.parse_args()
    operations = run(options.examples, seed=options.seed)
    print(f"{Machine.examples} schedules with {operations} operations: no invariant was broken")


if __name__ == "__main__":
    main()
