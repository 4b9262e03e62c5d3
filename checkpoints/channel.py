"""How the ranks of an attempt talk about checkpoints: a key-value store beside training, never its process group."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from checkpoints.errors import PeerSilent


class KeyValueStore(Protocol):
    """What is needed of a `torch.distributed.Store`, whose stubs do not know that it also takes bytes."""

    def set(self, key: str, value: Any, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta, /) -> None: ...
    def delete_key(self, key: str, /) -> bool: ...


class Channel:
    """Messages under keys. `prefix` must differ between attempts and restarts that share the store.

    The store's client must be this channel's own: a wait holds it.
    """

    def __init__(self, store: KeyValueStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def beside(self, name: str) -> Channel:
        """Another channel of the same ranks, with a client of its own: for another thread."""
        store: Any = self._store  # the stubs do not know of its clones
        return Channel(store.clone(), f"{self._prefix}/{name}")

    def post(self, key: str, data: bytes) -> None:
        """Say something, once. Raises PeerSilent when the store is gone."""
        try:
            self._store.set(f"{self._prefix}/{key}", zlib.compress(data, level=1))  # a TCPStore takes 8 MiB at most
        except RuntimeError as error:
            raise PeerSilent(key, [0], 0) from error

    def wait(self, key: str, rank: int, seconds: float) -> bytes:
        """What `rank` said under the key. Raises PeerSilent, naming the rank, after that many seconds."""
        name = f"{self._prefix}/{key}"
        try:
            self._store.wait([name], timedelta(seconds=max(seconds, 0.001)))
            return zlib.decompress(self._store.get(name))
        except RuntimeError as error:
            raise PeerSilent(key, [rank], seconds) from error

    def collect(self, key: str, ranks: Iterable[int], seconds: float) -> list[bytes]:
        """What each rank said under `key/rank`. Raises PeerSilent naming all ranks that said nothing in that time."""
        deadline = time.monotonic() + seconds
        said: list[bytes] = []
        silent: list[int] = []
        for rank in ranks:
            try:
                said.append(self.wait(f"{key}/{rank}", rank, deadline - time.monotonic()))
            except PeerSilent:
                silent.append(rank)
        if silent:
            raise PeerSilent(key, silent, seconds)
        return said

    def forget(self, key: str) -> None:
        """Free the memory of a message that everyone has read."""
        with suppress(RuntimeError):
            self._store.delete_key(f"{self._prefix}/{key}")
