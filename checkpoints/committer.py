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
from checkpoints.entry import Commit
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
from checkpoints.policy import deletion_order, orphans
from checkpoints.reader import check_sizes
from checkpoints.store import Store
from checkpoints.strict_json import Fields, Json, encode
from checkpoints.writer import Writer

_MANIFEST = "MANIFEST.json"
_MOST_MESSAGE_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a rank reports: its durable file (None when it has nothing to save), or what went wrong."""

    file: File | None = None
    operation: str = ""
    failure: str = ""
    is_unwritable: bool = False  # it went wrong because the storage is full or read-only
    verified: int = 0  # the commit whose file this rank has read back; 0 for none
    damage: str = ""  # what was wrong with it

    def to_bytes(self) -> bytes:
        return encode({**asdict(self), "file": self.file and self.file.to_json()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        fields = Fields.parse("a receipt", data, _MOST_MESSAGE_BYTES)
        return cls(
            file=None if fields.value("file") is None else File.from_json(fields.inner("file")),
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
    files: tuple[File, ...]  # that this rank has put; rank 0 also puts the manifest
    damage: tuple[str, ...]


class Committer:
    """Turns the arena of each rank into one commit. One call at a time, in the same order on all ranks."""

    def __init__(
        self,
        *,
        store: Store,
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
        self._manifest: File | None = None  # of the save under way, on rank 0

    def save(self, number: int, step: int, metadata: Mapping[str, Json]) -> Saved:
        """The commit that save `number` has become. Raises SaveAborted or Fenced, as rank 0 does."""
        deadline = time.monotonic() + self._deadline_seconds
        self._forget(number - 2)
        try:
            folder = self._agree_on_folder(number, step)
            receipt = self._write(folder, deadline)
            self._channel.post(f"{number}/receipt/{self._rank}", receipt.to_bytes())
            if self._claim is None:
                verdict = self._channel.wait(f"{number}/verdict", 0, 2 * self._deadline_seconds)
            else:
                verdict = self._decide(self._claim, number, step, metadata, folder, deadline)
                with suppress(PeerSilent):  # what was decided holds, even if nobody hears of it
                    self._channel.post(f"{number}/verdict", verdict)
        except PeerSilent as error:
            raise SaveAborted(self._rank, "coordinate", str(error)) from error
        return self._obey(verdict, folder, receipt.file)

    def finish(self, saved: Saved) -> None:
        """Delete what is no longer needed, and read back what this rank has written. Raises Fenced."""
        commit = saved.commit
        self._read_back = Receipt()
        if self._claim is not None:
            with suppress(StoreError):
                for gone in self._claim.retire(self._keep):
                    self._delete(self._store.list(f"{gone.folder}/"))
        try:
            for file in saved.files:
                self._writer.verify(commit.folder, file, self._deadline_seconds)
            self._read_back = Receipt(verified=commit.n)
        except CorruptCheckpoint as error:
            self._read_back = Receipt(damage=one_line(f"commit {commit.n} (step {commit.step}): {error}"))
        except StoreError:
            return  # nothing is known of it: it stays unverified

    def collect_orphans(self) -> None:
        """Delete what attempts before this one have left behind. They are over: they were fenced by the claim."""
        if self._claim is not None:
            with suppress(StoreError):
                self._delete(orphans(self._store.list("data/"), self._claim.state))

    def _agree_on_folder(self, number: int, step: int) -> str:
        key = f"{number}/folder"
        if self._claim is None:
            return self._channel.wait(key, 0, self._deadline_seconds).decode()
        folder = f"data/{self._claim.epoch}-{step}-{uuid.uuid4().hex[:16]}"
        self._channel.post(key, folder.encode())
        return folder

    def _write(self, folder: str, deadline: float) -> Receipt:
        if self._size == 0:
            return self._read_back
        try:
            seconds = max(0.001, deadline - time.monotonic())
            file = self._writer.write(folder, file_name(self._rank), self._size, seconds)
        except StoreError as error:
            reason = one_line(f"{error.key}: {error.reason}")
            is_unwritable = isinstance(error, StoreUnwritable)
            return replace(self._read_back, operation=error.operation, failure=reason, is_unwritable=is_unwritable)
        return replace(self._read_back, file=file)

    def _decide(
        self, claim: Claim, number: int, step: int, metadata: Mapping[str, Json], folder: str, deadline: float
    ) -> bytes:
        """The verdict for all ranks."""
        try:
            receipts = self._receipts(number, deadline)
            manifest = Manifest(
                step=step,
                world_size=self._world_size,
                metadata=metadata,
                files=tuple(receipt.file for receipt in receipts if receipt.file is not None),
                tensors=self._tensors,
            )
            commit = self._commit(claim, manifest, folder, _verified(receipts))
            damage = [receipt.damage for receipt in receipts if receipt.damage]
            return encode({"kind": "committed", "commit": asdict(commit), "damage": damage})
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

    def _commit(self, claim: Claim, manifest: Manifest, folder: str, verified: set[int]) -> Commit:
        data = manifest.to_bytes()
        self._manifest = File.of(_MANIFEST, data)
        self._store.put(f"{folder}/{_MANIFEST}", [memoryview(data)])
        check_sizes(self._store.list(f"{folder}/"), folder, manifest)
        return claim.commit(
            step=manifest.step,
            folder=folder,
            manifest_digest=manifest_digest(data),
            size=sum(file.size for file in manifest.files),
            verified=verified,
        )

    def _obey(self, verdict: bytes, folder: str, file: File | None) -> Saved:
        fields = Fields.parse("the verdict", verdict, _MOST_MESSAGE_BYTES)
        kind = fields.text("kind")
        if kind == "committed":
            damage = tuple(str(text) for text in fields.items("damage"))
            files = tuple(each for each in (file, self._manifest) if each is not None)
            return Saved(commit=Commit.from_json(fields.inner("commit")), files=files, damage=damage)
        if kind == "fenced":
            raise Fenced(fields.integer("epoch"), fields.text("owner"))
        if kind == "aborted":  # and not when the outcome is unknown: then the commit may exist
            own = [f"{folder}/{file_name(self._rank)}"]
            self._delete(own if self._claim is None else [f"{folder}/{_MANIFEST}", *own])
        raise SaveAborted(
            fields.integer("rank"),
            fields.text("operation"),
            fields.text("reason", most=4096),
            is_unwritable=fields.boolean("is_unwritable"),
        )

    def _delete(self, keys: Iterable[str]) -> None:
        for key in deletion_order(keys):
            with suppress(StoreError):
                self._store.delete(key)

    def _forget(self, number: int) -> None:
        self._channel.forget(f"{number}/receipt/{self._rank}")
        if self._claim is not None:
            self._channel.forget(f"{number}/folder")
            self._channel.forget(f"{number}/verdict")


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
