"""The commit log: the only truth about which checkpoints exist.

Entries are numbered from 1, created exclusively, and never changed or deleted. Creating the next entry is at once the
lock, the fence and the commit: who reads up to entry N and then creates N+1 has missed nothing.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from checkpoints.entry import MOST_BYTES, Commit, Entry, Kind, entry_key
from checkpoints.errors import (
    CheckpointError,
    CorruptCheckpoint,
    Fenced,
    KeyMissing,
    NotAFile,
    OutcomeUnknown,
    OwnerAlive,
    StoreError,
)
from checkpoints.owner import Owner, owner_is_alive
from checkpoints.policy import retirable, without_old_copies
from checkpoints.store import Created, Store
from checkpoints.strict_json import Json

_ENTRY_KEY = re.compile(r"log/([0-9]{12})\.json")
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the log says. `entry` is the newest intact one (None in an empty log); `damage` names the newer ones."""

    entry: Entry | None
    slot: int  # of the newest entry, intact or not; 0 in an empty log
    damage: tuple[CorruptCheckpoint, ...] = ()


class CommitLog:
    """The log in a store. Anyone may read and pin; everything else needs the claim."""

    def __init__(self, store: Store, deadline_seconds: float = 60.0) -> None:
        self.store = store
        self._deadline_seconds = deadline_seconds

    def read(self) -> Entry | None:
        """The newest intact entry, which is the whole state; None when the run has no log yet."""
        return self.find().entry

    def find(self) -> Reading:
        """Like `read`, and what was damaged on the way. Raises CorruptCheckpoint when no entry at all is intact."""
        damage: list[CorruptCheckpoint] = []
        slots = self._slots()
        for n in reversed(slots):
            try:
                return Reading(entry=self._get(n), slot=slots[-1], damage=tuple(damage))
            except CorruptCheckpoint as error:
                damage.append(error)
        if damage:
            raise CorruptCheckpoint("log/", f"not one of {len(damage)} entries is intact; restore them from a copy")
        return Reading(entry=None, slot=0)

    def history(self) -> tuple[list[Entry], list[CorruptCheckpoint]]:
        """All intact entries, oldest first, and what is wrong with the others."""
        entries: list[Entry] = []
        damage: list[CorruptCheckpoint] = []
        for n in self._slots():
            try:
                entry = self._get(n)
            except CorruptCheckpoint as error:
                damage.append(error)
                continue
            if entry.prev != (entries[-1].digest if entries else ""):
                damage.append(CorruptCheckpoint(entry.key, "does not follow the entry before it"))
            entries.append(entry)
        return entries, damage

    def name(self) -> str:
        """What tells this log from any other, also from one with the same URL: made from its first entry."""
        return sha256(self.store.get(entry_key(1), 0, MOST_BYTES + 1)).hexdigest()[:32]

    def claim(
        self,
        owner: Owner,
        *,
        body: Mapping[str, Json] | None = None,
        is_takeover: bool = False,
        is_alive: Callable[[Owner], bool] = owner_is_alive,
    ) -> Claim:
        """Become the only one who may commit.

        Raises OwnerAlive when another job seems to be at work, and CorruptCheckpoint when damage hides every commit,
        or a folder is where the next entry belongs.
        """
        for _ in self._tries():
            reading = self.find()
            before = None if reading.entry is None or reading.entry.is_done else reading.entry.owner
            if before is not None and before.job != owner.job and not is_takeover and is_alive(before):
                raise OwnerAlive(str(before))
            if reading.entry is not None and reading.damage and not reading.entry.live:
                self._refuse_lost_commits(reading.damage)
            entry = _claim(reading, owner, body or {})
            try:
                if self.offer(entry):
                    return Claim(self, entry)
            except NotAFile as error:  # a folder, which no list shows
                raise CorruptCheckpoint(error.key, f"{error.reason}; remove it") from error
        raise StoreError("claim", entry.key, "other writers came first every time; try again")

    def pin(self, n: int, *, is_pinned: bool = True) -> Commit:
        """Protect the live commit `n` from being retired, or end that. Raises CheckpointError when it is not live."""
        for _ in self._tries():
            reading = self.find()
            if reading.damage:  # an entry above a damaged one would hide from its writer what that one said
                raise reading.damage[0]
            state = reading.entry
            found = [commit for commit in state.live if commit.n == n] if state else []
            if state is None or not found:
                names = ", ".join(str(commit.n) for commit in state.live) if state else "none"
                raise CheckpointError(f"{n} is not a live commit; the live ones are: {names}")
            if not found[0].is_stored:
                raise CheckpointError(f"{n} is not in the store yet; pin one that is")
            pinned = replace(found[0], is_pinned=is_pinned)
            entry = state.followed_by(Kind.PIN if is_pinned else Kind.UNPIN, {"commit": n})
            live = tuple(pinned if commit.n == n else commit for commit in state.live)
            if self.offer(replace(entry, live=live)):
                return pinned
        raise StoreError("pin", entry.key, "other writers came first every time; try again")

    def offer(self, entry: Entry) -> bool:
        """Whether the entry is in the log now; False when its slot holds another one.

        A lost reply is settled by creating the same bytes again. Raises StoreError when nothing was stored, and
        OutcomeUnknown when that cannot be told within the deadline.
        """
        data = entry.to_bytes()
        is_unknown = False
        for _ in self._tries():
            try:
                outcome = self.store.create(entry.key, data)
                if outcome is Created.OK:
                    return True
                is_unknown = True
                if outcome is Created.EXISTS:
                    return self.store.get(entry.key, 0, MOST_BYTES + 1) == data
            except StoreError as error:
                if not is_unknown or isinstance(error, NotAFile):
                    raise
        raise OutcomeUnknown("create", entry.key)

    def newest_after(self, entry: Entry) -> Entry:
        """The newest entry, found by reading on from `entry`. Raises CorruptCheckpoint for one that does not follow."""
        while True:
            try:
                following = self._get(entry.n + 1)
            except KeyMissing:
                return entry
            if following.epoch == entry.epoch and following.prev != entry.digest:
                raise CorruptCheckpoint(following.key, "does not follow the entry before it")
            entry = following

    def _tries(self) -> Iterator[None]:
        """At least one try, and more, with pauses, until the deadline."""
        deadline = time.monotonic() + self._deadline_seconds
        yield
        while time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            yield

    def _refuse_lost_commits(self, damage: Collection[CorruptCheckpoint]) -> None:
        """Raises CorruptCheckpoint when damaged entries alone may tell of what was saved: a run must not start over."""
        if any(key.endswith("/MANIFEST.json") for key in self.store.list("data/")):
            what = f"{len(damage)} entries are damaged, and those before tell of no commit; restore them from a copy"
            raise CorruptCheckpoint("log/", what)

    def _get(self, n: int) -> Entry:
        try:
            return Entry.from_bytes(n, self.store.get(entry_key(n), 0, MOST_BYTES + 1))
        except NotAFile as error:
            raise CorruptCheckpoint(error.key, error.reason) from error

    def _slots(self) -> list[int]:
        return sorted(int(found[1]) for key in self.store.list("log/") if (found := _ENTRY_KEY.fullmatch(key)))


class Claim:
    """The right to commit, until a successor claims the run: from then on every method raises Fenced.

    Methods may be called from any thread. They also raise StoreError and OutcomeUnknown, as `CommitLog.offer` does.
    """

    def __init__(self, log: CommitLog, entry: Entry) -> None:
        self.epoch = entry.epoch
        self.state = entry
        self._log = log
        self._lock = threading.Lock()

    def commit(
        self,
        *,
        step: int,
        folder: str,
        manifest_digest: str,
        size: int,
        verified: Collection[int] = (),
        is_stored: bool = True,
        hosts: Collection[str] = (),
    ) -> Commit:
        """Make a save exist: in the store, or on the disks of `hosts` alone.

        `verified` are the commits that have been read back since the last call.
        """

        def change(entry: Entry) -> Entry:
            commit = Commit(
                n=entry.n, step=step, epoch=self.epoch, folder=folder, manifest_digest=manifest_digest, bytes=size,
                is_stored=is_stored, hosts=tuple(sorted(hosts)),
            )  # fmt: skip
            live = without_old_copies((*_mark(entry.live, verified, True), commit))
            return replace(entry, live=live, commits=entry.commits + commit.is_stored)

        return self._append(Kind.COMMIT, {}, change).live[-1]

    def stored(self, n: int) -> None:
        """Record that the live commit `n` is in the store now, and was read back from there.

        Whether it is verified is for the next commit to say: when all ranks have read back what they had on disks, too.
        """

        def change(entry: Entry) -> Entry:
            live = tuple(replace(commit, is_stored=True) if commit.n == n else commit for commit in entry.live)
            return replace(entry, live=live, commits=entry.commits + 1)

        self._append(Kind.STORED, {"commit": n}, change)

    def retire(self, keep: int, uploading: int = 0) -> tuple[Commit, ...]:
        """Give up the commits that nobody needs, and name them; only then may their files be deleted.

        `uploading` is the commit that is being copied to the store, which stays; 0 for none.
        """
        gone: tuple[Commit, ...] = ()

        def change(entry: Entry) -> Entry:
            nonlocal gone
            gone = retirable(entry, keep, uploading)
            body: dict[str, Json] = {"commits": [commit.n for commit in gone]}
            return replace(entry, live=tuple(commit for commit in entry.live if commit not in gone), body=body)

        if retirable(self.state, keep, uploading):
            self._append(Kind.RETIRE, {}, change)
        return gone

    def resumed(self, commit: Commit, skipped: Mapping[int, str]) -> None:
        """Record that training goes on from `commit`, which was read whole, and why newer ones were passed over."""
        reasons: list[Json] = [{"commit": n, "reason": reason} for n, reason in skipped.items()]

        def change(entry: Entry) -> Entry:
            live = _mark(_mark(entry.live, [commit.n], True), skipped, False)
            return replace(entry, live=live, base=commit.n)

        self._append(Kind.RESUMED, {"commit": commit.n, "skipped": reasons}, change)

    def check(self) -> None:
        """Raises Fenced when a successor has claimed the run by now: what is missing is then no damage."""
        with self._lock:
            self.state = self._log.newest_after(self.state)
            self._refuse_if_fenced()

    def done(self, body: Mapping[str, Json] | None = None) -> None:
        """Record that the run is finished."""
        self._append(Kind.DONE, body or {}, lambda entry: replace(entry, is_done=True))

    def _append(self, kind: Kind, body: Mapping[str, Json], change: Callable[[Entry], Entry]) -> Entry:
        with self._lock:
            while True:
                self._refuse_if_fenced()
                entry = change(self.state.followed_by(kind, body))
                if self._log.offer(entry):
                    self.state = entry
                    return entry
                self.state = self._log.newest_after(self.state)

    def _refuse_if_fenced(self) -> None:
        if self.state.epoch > self.epoch:
            raise Fenced(self.state.epoch, str(self.state.owner))


def _claim(reading: Reading, owner: Owner, body: Mapping[str, Json]) -> Entry:
    """The entry that claims the run. A damaged entry may have been a claim: the new epoch is above that one's, too."""
    n, before = reading.slot + 1, reading.entry
    body = {**body, "damaged": [str(error) for error in reading.damage]}
    if before is None:
        return Entry(
            n=n,
            prev="",
            kind=Kind.CLAIM,
            epoch=1,
            owner=owner,
            base=None,
            commits=0,
            doubtful_epoch=0,
            is_done=False,
            live=(),
            body=body,
        )
    last_epoch = before.epoch + len(reading.damage)
    return replace(
        before.followed_by(Kind.CLAIM, body),
        n=n,
        epoch=last_epoch + 1,
        doubtful_epoch=last_epoch if reading.damage else before.doubtful_epoch,
        owner=owner,
        base=before.live[-1].n if before.live else None,
        is_done=False,
    )


def _mark(live: tuple[Commit, ...], numbers: Collection[int], is_verified: bool) -> tuple[Commit, ...]:
    return tuple(replace(commit, is_verified=is_verified) if commit.n in numbers else commit for commit in live)
