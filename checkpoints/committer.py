"""One rank's part in making a save exist: write, report, learn the verdict; and after it, retire and read back.

Everything here runs in the background. Rank 0 coordinates: it alone has the claim, and its verdict holds for all.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from checkpoints.channel import Channel
from checkpoints.entry import Commit, Entry
from checkpoints.errors import (
    CheckpointError,
    CorruptCheckpoint,
    Fenced,
    OutcomeUnknown,
    PeerSilent,
    SaveAborted,
    StoreError,
    StoreUnwritable,
    one_line,
)
from checkpoints.layout import file_name
from checkpoints.log import Claim
from checkpoints.manifest import File, Manifest, Tensor, manifest_digest
from checkpoints.owner import host_name
from checkpoints.policy import deletion_order, old_copies, orphans
from checkpoints.reader import check_sizes
from checkpoints.store import Store
from checkpoints.strict_json import Fields, Json, encode
from checkpoints.uploads import Uploads
from checkpoints.writer import Writer

_MANIFEST = "MANIFEST.json"
_MOST_MESSAGE_BYTES = 2**30
_FAILED_UPLOADS = 3  # in a row: then the next save goes to the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a rank reports: its durable file (None when it has nothing to save), or what went wrong.

    host: on whose disk the file is, if it is not in the store. For people.
    """

    file: File | None = None
    host: str = ""
    operation: str = ""
    failure: str = ""
    is_unwritable: bool = False  # it went wrong because the storage is full or read-only
    verified: int = 0  # the commit whose file this rank has read back; 0 for none
    damage: str = ""  # what was wrong with it; also that it could not be read from a disk of a node

    def to_bytes(self) -> bytes:
        return encode({**asdict(self), "file": self.file and self.file.to_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        fields = Fields.parse("a receipt", data, _MOST_MESSAGE_BYTES)
        return cls(
            file=None if fields.value("file") is None else File.from_json(fields.inner("file")),
            host=fields.text("host"),
            operation=fields.text("operation"),
            failure=fields.text("failure", most=4096),
            is_unwritable=fields.boolean("is_unwritable"),
            verified=fields.integer("verified"),
            damage=fields.text("damage", most=4096),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A save that has become a commit. `damage` is what reading the commit before it back has found."""

    commit: Commit
    file: File | None  # that this rank has written
    damage: tuple[str, ...]
    is_uploaded: bool  # from here on, in the background
    copied: tuple[str, ...]  # the folders of all commits that have copies on disks of nodes
    over: range  # epochs that have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a save goes: into a folder of the store, or of the disk of each rank's node."""

    folder: str
    is_local: bool


class Committer:
    """Turns the arena of each rank into one commit. One call at a time, in the same order on all ranks."""

    def __init__(
        self,
        *,
        store: Store,
        copies: Store | None,
        uploads: Uploads | None,
        channel: Channel,
        writer: Writer,
        claim: Claim | None,
        rank: int,
        world_size: int,
        keep: int,
        deadline_seconds: float,
        size: int,
        tensors: tuple[Tensor, ...],
    ) -> None:
        self._store = store
        self._copies = copies
        self._uploads = uploads
        self._channel = channel
        self._writer = writer
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._keep = keep
        self._deadline_seconds = deadline_seconds
        self._size = size
        self._tensors = tensors
        self._read_back = Receipt()  # what the last `finish` found
        self._needs_store = claim is not None and _is_store_behind(claim.state)  # the next save; on rank 0
        self._manifest: File | None = None  # of the save under way, on rank 0

    def save(self, number: int, step: int, metadata: Mapping[str, Json], *, to_store: bool) -> Saved:
        """The commit that save `number` has become. Raises SaveAborted or Fenced, as rank 0 does.

        to_store: whether it has to be in the store then, also where the disk of each node comes first.
        """
        deadline = time.monotonic() + self._deadline_seconds
        self._forget(number - 2)
        try:
            place = self._agree_on_place(number, step, to_store=to_store)
            if self._uploads is not None and not place.is_local:
                self._uploads.give_up()  # what is newer needs the network
            receipt = self._write(place, deadline)
            self._channel.post(f"{number}/receipt/{self._rank}", receipt.to_bytes())
            if self._claim is None:
                verdict = self._channel.wait(f"{number}/verdict", 0, 2 * self._deadline_seconds)
            else:
                verdict = self._decide(self._claim, number, step, metadata, place, deadline)
                with suppress(PeerSilent):  # what was decided holds, even if nobody hears of it
                    self._channel.post(f"{number}/verdict", verdict)
        except PeerSilent as error:
            raise SaveAborted(self._rank, "coordinate", str(error)) from error
        return self._obey(verdict, place, receipt.file)

    def finish(self, saved: Saved) -> None:
        """Delete what is no longer needed, read back what this rank has written, and have it copied. Raises Fenced."""
        commit = saved.commit
        if self._claim is not None:
            uploading = self._uploads.running if self._uploads is not None else 0
            with suppress(StoreError):
                for gone in self._claim.retire(self._keep, uploading):
                    self._delete(self._store, self._store.list(f"{gone.folder}/"))
        if self._copies is not None:
            with suppress(StoreError):
                keys = self._copies.list("data/")
                name = file_name(self._rank)
                self._delete(self._copies, old_copies(keys, saved.copied, saved.over, commit.epoch, name))
        self._read_back = self._verify(saved)
        if self._uploads is not None and saved.is_uploaded:
            self._uploads.begin(commit, saved.file, self._read_back.damage)

    def _verify(self, saved: Saved) -> Receipt:
        commit = saved.commit
        try:
            if saved.file is not None:
                self._writer.verify(
                    self._store_of(is_local=not commit.is_stored), commit.folder, saved.file, self._deadline_seconds
                )
            if self._manifest is not None:
                self._writer.verify(self._store, commit.folder, self._manifest, self._deadline_seconds)
            return Receipt(verified=commit.n)
        except CorruptCheckpoint as error:
            return Receipt(damage=one_line(f"commit {commit.n} (step {commit.step}): {error}"))
        except StoreError as error:
            if commit.is_stored:
                return Receipt()  # nothing is known of it: it stays unverified
            return Receipt(damage=one_line(f"commit {commit.n} (step {commit.step}): {error}"))

    def _store_of(self, *, is_local: bool) -> Store:
        return self._copies if is_local and self._copies is not None else self._store

    def collect_orphans(self) -> None:
        """Delete what attempts before this one have left behind. They are over: they were fenced by the claim."""
        if self._claim is not None:
            with suppress(StoreError):
                self._delete(self._store, orphans(self._store.list("data/"), self._claim.state))

    def _agree_on_place(self, number: int, step: int, *, to_store: bool) -> _Place:
        key = f"{number}/place"
        if self._claim is None:
            said = self._channel.wait(key, 0, self._deadline_seconds)
            fields = Fields.parse("a place", said, _MOST_MESSAGE_BYTES)
            return _Place(folder=fields.text("folder"), is_local=fields.boolean("is_local"))
        folder = f"data/{self._claim.epoch}-{step}-{uuid.uuid4().hex[:16]}"
        place = _Place(folder=folder, is_local=not to_store and self._may_be_local(self._claim))
        self._channel.post(key, encode(asdict(place)))
        return place

    def _may_be_local(self, claim: Claim) -> bool:
        """Never before a commit is in the store: so there always is one. And not when a disk, or the way to the store
        from there, may be the trouble, until a commit is in the store again."""
        if self._copies is None or self._needs_store or not any(commit.is_stored for commit in claim.state.live):
            return False
        return self._uploads is None or self._uploads.failures_in_a_row < _FAILED_UPLOADS

    def _write(self, place: _Place, deadline: float) -> Receipt:
        if self._size == 0:
            return self._read_back
        try:
            seconds = max(0.001, deadline - time.monotonic())
            store = self._store_of(is_local=place.is_local)
            file = self._writer.write(store, place.folder, file_name(self._rank), self._size, seconds)
        except StoreError as error:
            reason = one_line(f"{error.key}: {error.reason}")
            is_unwritable = isinstance(error, StoreUnwritable)
            return replace(self._read_back, operation=error.operation, failure=reason, is_unwritable=is_unwritable)
        return replace(self._read_back, file=file, host=host_name() if place.is_local else "")

    def _decide(
        self, claim: Claim, number: int, step: int, metadata: Mapping[str, Json], place: _Place, deadline: float
    ) -> bytes:
        """The verdict for all ranks."""
        try:
            receipts = self._receipts(number, deadline)
            self._needs_store |= any(receipt.damage for receipt in receipts)
            manifest = Manifest(
                step=step,
                world_size=self._world_size,
                metadata=metadata,
                files=tuple(receipt.file for receipt in receipts if receipt.file is not None),
                tensors=self._tensors,
            )
            commit = self._commit(claim, manifest, place, receipts)
            if commit.is_stored:
                self._trust_disks()
            return encode(
                {
                    "kind": "committed",
                    "commit": commit.to_json(),
                    "damage": [receipt.damage for receipt in receipts if receipt.damage],
                    "is_uploaded": not commit.is_stored and self._uploads is not None and not self._uploads.running,
                    "copied": [commit.folder for commit in claim.state.live if commit.hosts],
                    "doubtful_epoch": claim.state.doubtful_epoch,
                }
            )
        except Fenced as error:
            return encode({"kind": "fenced", "epoch": error.epoch, "owner": error.owner})
        except SaveAborted as error:
            return _aborted("aborted", error)
        except CheckpointError as error:
            kind = "unknown" if isinstance(error, OutcomeUnknown) else "aborted"
            is_unwritable = isinstance(error, StoreUnwritable)
            return _aborted(kind, SaveAborted(0, "commit", one_line(str(error)), is_unwritable=is_unwritable))

    def _receipts(self, number: int, deadline: float) -> list[Receipt]:
        try:
            said = self._channel.collect(f"{number}/receipt", range(self._world_size), deadline - time.monotonic())
        except PeerSilent as error:
            raise SaveAborted(error.ranks[0], "write", str(error)) from error
        receipts = [Receipt.from_bytes(data) for data in said]
        for rank, receipt in enumerate(receipts):
            if receipt.failure:
                raise SaveAborted(rank, receipt.operation, receipt.failure, is_unwritable=receipt.is_unwritable)
        return receipts

    def _commit(self, claim: Claim, manifest: Manifest, place: _Place, receipts: list[Receipt]) -> Commit:
        data = manifest.to_bytes()
        self._manifest = File.of(_MANIFEST, data)
        self._store.put(f"{place.folder}/{_MANIFEST}", [memoryview(data)])
        if not place.is_local:
            check_sizes(self._store.list(f"{place.folder}/"), place.folder, manifest)
        return claim.commit(
            step=manifest.step,
            folder=place.folder,
            manifest_digest=manifest_digest(data),
            size=sum(file.size for file in manifest.files),
            verified=_verified(receipts),
            is_stored=not place.is_local,
            hosts={receipt.host for receipt in receipts if receipt.file is not None} if place.is_local else (),
        )

    def _trust_disks(self) -> None:
        self._needs_store = False
        if self._uploads is not None:
            self._uploads.failures_in_a_row = 0

    def _obey(self, verdict: bytes, place: _Place, file: File | None) -> Saved:
        fields = Fields.parse("the verdict", verdict, _MOST_MESSAGE_BYTES)
        kind = fields.text("kind")
        self._needs_store |= place.is_local and kind != "committed"
        if kind == "committed":
            commit = Commit.from_json(fields.inner("commit"))
            return Saved(
                commit=commit,
                file=file,
                damage=fields.texts("damage"),
                is_uploaded=fields.boolean("is_uploaded"),
                copied=fields.texts("copied"),
                over=range(fields.integer("doubtful_epoch") + 1, commit.epoch),
            )
        if kind == "fenced":
            raise Fenced(fields.integer("epoch"), fields.text("owner"))
        if kind == "aborted":  # and not when the outcome is unknown: then the commit may exist
            if self._claim is not None:
                self._delete(self._store, [f"{place.folder}/{_MANIFEST}"])
            self._delete(self._store_of(is_local=place.is_local), [f"{place.folder}/{file_name(self._rank)}"])
        raise SaveAborted(
            fields.integer("rank"),
            fields.text("operation"),
            fields.text("reason", most=4096),
            is_unwritable=fields.boolean("is_unwritable"),
        )

    def _delete(self, store: Store, keys: Iterable[str]) -> None:
        for key in deletion_order(keys):
            with suppress(StoreError):
                store.delete(key)

    def _forget(self, number: int) -> None:
        self._channel.forget(f"{number}/receipt/{self._rank}")
        if self._claim is not None:
            self._channel.forget(f"{number}/place")
            self._channel.forget(f"{number}/verdict")


def _is_store_behind(state: Entry) -> bool:
    """Whether what this start goes on from, or had to pass over, is on disks alone."""
    return any(commit.n >= (state.base or 0) and not commit.is_stored for commit in state.live)


def _verified(receipts: list[Receipt]) -> set[int]:
    """The commit that every rank has read back, if there is one."""
    numbers = {receipt.verified for receipt in receipts}
    return numbers - {0} if len(numbers) == 1 else set()


def _aborted(kind: str, error: SaveAborted) -> bytes:
    what = {
        "rank": error.rank,
        "operation": error.operation,
        "reason": error.reason,
        "is_unwritable": error.is_unwritable,
    }
    return encode({"kind": kind, **what})
