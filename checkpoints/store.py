"""Where checkpoints lie: a flat space of write-once keys. Nothing is ever renamed or overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Protocol

from checkpoints.errors import NotExclusive, OutcomeUnknown, StoreError

_PROBES = 3
OBJECT_SCHEMES = ("s3", "gs", "az")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_KEY = re.compile(rf"(?:{_NAME}/){{0,7}}{_NAME}")


class Created(Enum):
    """The answer to an exclusive create."""

    OK = "ok"
    EXISTS = "exists"
    UNKNOWN = "unknown"  # the reply was lost: the key may hold our bytes now, later, or never


class Store(Protocol):
    """Six operations on keys such as `log/000000000042.json`. All of them raise StoreError when the storage fails."""

    url: str
    crosses_processes: bool  # whether another process that opens the same URL sees the same keys

    def create(self, key: str, data: bytes) -> Created:
        """Store all of `data` under a key that nobody has; of any number of callers at most one gets OK.

        Who gets EXISTS may have stored it nevertheless, if a reply was lost: what is there tells.
        """

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        """Store the blocks, one after the other, under a fresh key; they are durable when this returns.

        Raises StoreUnwritable when there is no space, or nothing may be written. A failed put leaves nothing, or a
        file that no manifest names.
        """

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Up to `length` bytes from byte `start`; fewer where the file ends. Raises KeyMissing."""

    def read_back(self, key: str, part_bytes: int) -> Iterator[memoryview]:
        """The file in parts, from the medium and not from a cache; each part is valid until the next is asked for."""

    def list(self, prefix: str) -> dict[str, int]:
        """Each key below the folder `prefix`, which ends in a slash, with its size in bytes."""

    def delete(self, key: str) -> None:
        """Forget the key. A missing key is fine."""


def check_key(key: str) -> str:
    """The key itself. Raises StoreError for one that could leave the store or mean something to a file system."""
    if not _KEY.fullmatch(key):
        raise StoreError("use", ascii(key), "not a key; use names of letters, digits, '.', '_' and '-' joined by '/'")
    return key


def open_store(url: str) -> Store:
    """The store at a path or URL: `file://`, `s3://`, `gs://`, `az://`, `memory://` (as long as this process lives)."""
    scheme, separator, rest = url.partition("://")
    if not separator or (scheme == "file" and rest.startswith("/")):
        from checkpoints.posix_store import PosixStore

        return PosixStore(Path(rest if separator else url).absolute())
    if scheme == "memory":
        from checkpoints.memory_store import memory_store

        return memory_store(url)
    if scheme in OBJECT_SCHEMES:
        from checkpoints.object_store import ObjectStore

        return ObjectStore(url)
    raise StoreError("open", ascii(url), "not supported; use a path, s3://bucket/prefix, gs://... or az://...")


def open_copies(folder: str, log_name: str) -> Store:
    """The store in a folder of this machine's disk that keeps copies of what is in that log, and of nothing else."""
    return open_store(str(Path(folder) / log_name))


def probe_writing(store: Store) -> None:
    """Raises StoreError when nothing can be written to the store."""
    key = f"probe-{os.urandom(16).hex()}"
    store.put(key, [memoryview(b"probe")])
    store.delete(key)


def probe(store: Store) -> None:
    """Prove that the store creates exclusively.

    Raises NotExclusive when a second writer of a key is not told, and OutcomeUnknown when the store does not answer.
    """
    for _ in range(_PROBES):
        key = f"log/probe-{os.urandom(16).hex()}"
        store.create(key, b"first")
        try:
            second = store.create(key, b"second")
        finally:
            store.delete(key)
        if second is Created.EXISTS:
            return
        if second is Created.OK:
            raise NotExclusive(store.url)
    raise OutcomeUnknown("probe", key)  # replies that are lost prove nothing
