"""A store that fails once, at the n-th operation."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from enum import Enum

from checkpoints.errors import StoreError
from checkpoints.posix_store import PosixStore
from checkpoints.store import Created, Store


class Crash(BaseException):
    """The process was killed. Nothing of it runs any more, so every later operation of the store raises it, too."""


class Fault(Enum):
    """What happens at the n-th operation."""

    ERROR = "nothing is done, and an error is raised"
    LOST_REPLY = "it is done, and the answer is lost"
    TORN = "half of it is done, and the process dies"
    KILLED_BEFORE = "the process dies before it"
    KILLED_AFTER = "the process dies after it"


class FaultyStore:
    """What one process sees of a store. A save runs in this process, so that its operations are counted."""

    crosses_processes = False

    def __init__(self, inner: Store, fault: Fault | None = None, at: int = 0) -> None:
        self.url = inner.url
        self.inner = inner
        self.operations = 0
        self.threads: set[str] = set()
        self.is_dead = False
        self._fault = fault
        self._at = at

    def create(self, key: str, data: bytes) -> Created:
        fault = self._enter("create", key)
        if fault is Fault.TORN:  # an exclusive create is never half done: it happens, or it does not
            self._die()
        created = self.inner.create(key, data)
        self._leave(fault)
        return Created.UNKNOWN if fault is Fault.LOST_REPLY else created

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        fault = self._enter("put", key)
        if fault is Fault.TORN:
            if isinstance(self.inner, PosixStore):  # elsewhere nothing is seen of half a put
                data = b"".join(blocks)
                self.inner.put(key, [memoryview(data[: len(data) // 2])])
            self._die()
        self.inner.put(key, blocks)
        self._leave(fault)
        self._lose_reply(fault, "put", key)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        fault = self._enter("get", key)
        data = self.inner.get(key, start, length)
        self._leave(fault)
        self._lose_reply(fault, "get", key)
        return data

    def read_back(self, key: str, block_bytes: int) -> Iterator[memoryview]:
        fault = self._enter("read back", key)
        yield from self.inner.read_back(key, block_bytes)
        self._leave(fault)
        self._lose_reply(fault, "read back", key)

    def list(self, prefix: str) -> dict[str, int]:
        fault = self._enter("list", prefix)
        sizes = self.inner.list(prefix)
        self._leave(fault)
        self._lose_reply(fault, "list", prefix)
        return sizes

    def delete(self, key: str) -> None:
        fault = self._enter("delete", key)
        self.inner.delete(key)
        self._leave(fault)
        self._lose_reply(fault, "delete", key)

    def _enter(self, operation: str, key: str) -> Fault | None:
        if self.is_dead:
            raise Crash
        self.threads.add(threading.current_thread().name)
        self.operations += 1
        fault = self._fault if self.operations == self._at else None
        if fault is Fault.KILLED_BEFORE:
            self._die()
        if fault is Fault.ERROR:
            raise StoreError(operation, key, "the disk has failed")
        return fault

    def _leave(self, fault: Fault | None) -> None:
        if fault in (Fault.KILLED_AFTER, Fault.TORN):
            self._die()

    def _lose_reply(self, fault: Fault | None, operation: str, key: str) -> None:
        if fault is Fault.LOST_REPLY:
            raise StoreError(operation, key, "the connection was reset")

    def _die(self) -> None:
        self.is_dead = True
        raise Crash
