"""A simulated object store: it outlives the processes that use it, and shows a put only when it is whole."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoints.memory_store import MemoryStore


class ObjectStore(MemoryStore):
    """Keys are created if absent, and seen by everybody at once. Remembers the keys that were put twice."""

    def __init__(self) -> None:
        super().__init__("memory://objects")
        self.overwritten: set[str] = set()
        self._were_put: set[str] = set()

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        super().put(key, blocks)
        if key in self._were_put:
            self.overwritten.add(key)
        self._were_put.add(key)
