"""A simulated object store: it outlives the processes that use it, and shows a put only when it is whole."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoints.memory_store import MemoryStore
from checkpoints.store import Created


class ObjectStore(MemoryStore):
    """Keys are created if absent, and seen by everybody at once. Remembers the keys that were written twice."""

    def __init__(self) -> None:
        super().__init__("memory://objects")
        self.overwritten: set[str] = set()
        self._were_written: set[str] = set()

    def create(self, key: str, data: bytes) -> Created:
        created = super().create(key, data)
        if created is Created.OK:
            self._note(key)
        return created

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        super().put(key, blocks)
        self._note(key)

    def plant(self, key: str, data: bytes) -> None:
        """Put something there that no process of the run has written, under any key."""
        self._files.setdefault(key, data)

    def copy(self) -> ObjectStore:
        """The same content, listed the other way round."""
        other = ObjectStore()
        other._files = dict(reversed(self._files.items()))
        return other

    def _note(self, key: str) -> None:
        if key in self._were_written:
            self.overwritten.add(key)
        self._were_written.add(key)
