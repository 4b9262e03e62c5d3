"""A store in this process's memory, for rehearsals and tests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from checkpoints.errors import KeyMissing
from checkpoints.store import Created, check_key

_stores: dict[str, MemoryStore] = {}
_stores_lock = threading.Lock()


def memory_store(url: str) -> MemoryStore:
    """The one store of this process with this URL."""
    with _stores_lock:
        return _stores.setdefault(url, MemoryStore(url))


class MemoryStore:
    """Keys in a dictionary."""

    crosses_processes = False

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> Created:
        with self._lock:
            if check_key(key) in self._files:
                return Created.EXISTS
            self._files[key] = data
            return Created.OK

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        data = b"".join(blocks)
        with self._lock:
            self._files[check_key(key)] = data

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = self._file("get", key)
        return data[start : None if length is None else start + length]

    def read_back(self, key: str, part_bytes: int) -> Iterator[memoryview]:
        data = memoryview(self._file("read back", key))
        for start in range(0, len(data), part_bytes):
            yield data[start : start + part_bytes]

    def list(self, prefix: str) -> dict[str, int]:
        with self._lock:
            return {key: len(data) for key, data in self._files.items() if key.startswith(prefix)}

    def delete(self, key: str) -> None:
        with self._lock:
            self._files.pop(check_key(key), None)

    def _file(self, operation: str, key: str) -> bytes:
        with self._lock:
            data = self._files.get(check_key(key))
        if data is None:
            raise KeyMissing(operation, key)
        return data
