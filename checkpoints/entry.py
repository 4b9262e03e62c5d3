"""An entry of the commit log. The newest one alone is the whole state of a run's checkpoints."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from hashlib import sha256

from checkpoints.errors import CheckpointError, CorruptCheckpoint
from checkpoints.owner import Owner
from checkpoints.strict_json import Fields, Json, encode

MOST_BYTES = 256 * 1024
_SAVE_FOLDER = re.compile(r"data/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Kind(Enum):
    """What an entry changed."""

    CLAIM = "CLAIM"
    COMMIT = "COMMIT"
    STORED = "STORED"
    RETIRE = "RETIRE"
    PIN = "PIN"
    UNPIN = "UNPIN"
    RESUMED = "RESUMED"
    DONE = "DONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A checkpoint that exists. `n` is its position in the log: a higher one is newer, whatever its step.

    is_stored: its files lie in the store; if not, disks of nodes have the only ones. hosts: on whose disks copies lie.
    """

    n: int
    step: int
    epoch: int
    folder: str
    manifest_digest: str
    bytes: int
    is_pinned: bool = False
    is_verified: bool = False  # every byte of it was read back and was right
    is_stored: bool = True
    hosts: tuple[str, ...] = ()

    @property
    def manifest_key(self) -> str:
        return f"{self.folder}/MANIFEST.json"

    @classmethod
    def from_json(cls, fields: Fields) -> Commit:
        folder = fields.text("folder")
        if not _SAVE_FOLDER.fullmatch(folder):  # what is retired is deleted: it must never be the log
            raise fields.bad("folder", "is not that of a save")
        return cls(
            n=fields.integer("n", least=1),
            step=fields.integer("step"),
            epoch=fields.integer("epoch", least=1),
            folder=folder,
            manifest_digest=fields.text("manifest_digest"),
            bytes=fields.integer("bytes"),
            is_pinned=fields.boolean("is_pinned"),
            is_verified=fields.boolean("is_verified"),
            is_stored="is_stored" not in fields or fields.boolean("is_stored"),
            hosts=fields.texts("hosts") if "hosts" in fields else (),
        )

    def to_json(self) -> dict[str, object]:
        """Where nothing is kept on disks of nodes, an entry is as it was before that could be."""
        values = asdict(self)
        if self.is_stored:
            del values["is_stored"]
        if not self.hosts:
            del values["hosts"]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry, and the state after it."""

    n: int
    prev: str  # the digest of the entry that it follows; empty for the first
    kind: Kind
    epoch: int  # the number of the claim in force
    owner: Owner  # who made that claim
    base: int | None  # the `n` of the commit that this epoch started from; None when it started from nothing
    commits: int  # how many have reached the store, retired ones included
    doubtful_epoch: int  # a damaged entry may have told of commits up to this epoch: their files are left alone
    is_done: bool
    live: tuple[Commit, ...]  # in the order of the log
    body: Mapping[str, Json] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    written_at: float = field(default_factory=time.time)  # for people: no decision looks at it

    @property
    def key(self) -> str:
        return entry_key(self.n)

    @property
    def digest(self) -> str:
        return sha256(encode(self._to_json())).hexdigest()

    def followed_by(self, kind: Kind, body: Mapping[str, Json] | None = None) -> Entry:
        """The next entry, as yet with the same state."""
        return replace(
            self,
            n=self.n + 1,
            prev=self.digest,
            kind=kind,
            body=body or {},
            nonce=uuid.uuid4().hex,
            written_at=time.time(),
        )

    def to_bytes(self) -> bytes:
        """What is stored. Raises CheckpointError when that would be longer than an entry may be."""
        data = encode({**self._to_json(), "digest": self.digest})
        if len(data) > MOST_BYTES:
            raise CheckpointError(f"log entry {self.n} has {len(data)} bytes, more than {MOST_BYTES}; unpin some")
        return data

    @classmethod
    def from_bytes(cls, n: int, data: bytes) -> Entry:
        """The entry in slot `n`. Raises CorruptCheckpoint unless the bytes are exactly those that were written."""
        fields = Fields.parse(entry_key(n), data, MOST_BYTES)
        try:
            kind = Kind(fields.text("kind"))
        except ValueError as error:
            raise fields.bad("kind", "is not known") from error
        entry = cls(
            n=fields.integer("n", least=n, most=n),
            prev=fields.text("prev"),
            kind=kind,
            epoch=fields.integer("epoch", least=1),
            owner=Owner.from_json(fields.inner("owner")),
            base=None if fields.value("base") is None else fields.integer("base"),
            commits=fields.integer("commits"),
            doubtful_epoch=fields.integer("doubtful_epoch"),
            is_done=fields.boolean("is_done"),
            live=tuple(Commit.from_json(commit) for commit in fields.objects("live")),
            body=fields.mapping("body"),
            nonce=fields.text("nonce"),
            written_at=fields.number("written_at"),
        )
        try:
            is_same = entry.to_bytes() == data
        except (CheckpointError, ValueError, RecursionError):
            is_same = False
        if not is_same:
            raise CorruptCheckpoint(entry_key(n), "the bytes are not those that were written")
        return entry

    def _to_json(self) -> dict[str, object]:
        return {
            "n": self.n,
            "prev": self.prev,
            "kind": self.kind.value,
            "epoch": self.epoch,
            "owner": self.owner.to_json(),
            "base": self.base,
            "commits": self.commits,
            "doubtful_epoch": self.doubtful_epoch,
            "is_done": self.is_done,
            "live": [commit.to_json() for commit in self.live],
            "body": dict(self.body),
            "nonce": self.nonce,
            "written_at": self.written_at,
        }


def entry_key(n: int) -> str:
    return f"log/{n:012d}.json"
