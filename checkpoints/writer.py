"""The writer process: it puts what lies in the arena into the store, so that the training process does not have to.

    python -m checkpoints.writer ARENA_DESCRIPTOR SOCKET_DESCRIPTOR PARENT_PID

It answers one command at a time, each a line of JSON on the socket, and ends when the other side of the socket does.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Protocol

from checkpoints.arena import Arena
from checkpoints.errors import CorruptCheckpoint, StoreError, StoreUnwritable, one_line
from checkpoints.manifest import BLOCK_BYTES, File, block_digests
from checkpoints.reader import checked_parts, verify_file
from checkpoints.store import Store, open_store
from checkpoints.strict_json import Fields, encode

# Written at once: after each part the writer waits for a core, which training holds.
PART_BYTES = 64 * BLOCK_BYTES
_MOST_ANSWER_BYTES = 2**30
_KILLED_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Writer(Protocol):
    """Writes the arena to a store. `seconds` is how long the caller waits. All of it raises StoreError."""

    def write(self, store: Store, folder: str, path: str, size: int, seconds: float) -> File:
        """Put the first `size` bytes of the arena; they are durable when this returns."""

    def copy(self, source: Store, store: Store, folder: str, file: File, seconds: float) -> None:
        """Put into `store` what `source` has. Raises CorruptCheckpoint when that is not the file."""

    def verify(self, store: Store, folder: str, file: File, seconds: float) -> None:
        """Read the file back from the medium. Raises CorruptCheckpoint."""

    def close(self) -> None:
        """End it. What still runs is given up."""


def open_writer(store: Store, arena: Arena) -> Writer:
    """One for this store, and for any others of its kind."""
    return WriterProcess(arena) if store.crosses_processes else InlineWriter(arena)


class InlineWriter:
    """Writes in the calling thread, for stores that only this process can see."""

    def __init__(self, arena: Arena) -> None:
        self._arena = memoryview(arena.memory)

    def write(self, store: Store, folder: str, path: str, size: int, seconds: float) -> File:
        return _write(store, self._arena[:size], folder, path, lambda: None)

    def copy(self, source: Store, store: Store, folder: str, file: File, seconds: float) -> None:
        _copy(source, store, folder, file, lambda: None)

    def verify(self, store: Store, folder: str, file: File, seconds: float) -> None:
        verify_file(store, f"{folder}/{file.path}", file)

    def close(self) -> None:
        """There is nothing to end."""


class WriterProcess:
    """Writes in a process of its own. When that has died, the next call starts another."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._start()

    def write(self, store: Store, folder: str, path: str, size: int, seconds: float) -> File:
        command = {"do": "write", "store": store.url, "folder": folder, "path": path, "size": size}
        return File.from_json(self._ask(seconds, command).inner("file"))

    def copy(self, source: Store, store: Store, folder: str, file: File, seconds: float) -> None:
        stores = {"source": source.url, "store": store.url}
        self._ask(seconds, {"do": "copy", **stores, "folder": folder, "file": file.to_json()})

    def verify(self, store: Store, folder: str, file: File, seconds: float) -> None:
        self._ask(seconds, {"do": "verify", "store": store.url, "folder": folder, "file": file.to_json()})

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes up a thread that waits for an answer, too
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # A process that the storage holds in a system call ends when that returns: for a disk that is gone, never.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_KILLED_SECONDS)
        self._socket.close()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        descriptors = (self._arena.file.fileno(), theirs.fileno())
        arguments = [*map(str, descriptors), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "checkpoints.writer", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": path},
            )

    def _ask(self, seconds: float, command: dict[str, object]) -> Fields:
        if self._process.poll() is not None or self._socket.fileno() == -1:
            self.close()
            self._start()
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(encode(command))
            with self._socket.makefile("rb") as stream:
                line = stream.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError("it ended")
        except OSError as error:
            self.close()
            reason = f"the writer process did not answer ({error}; exit code {self._process.returncode})"
            raise StoreError(str(command["do"]), str(command["folder"]), reason) from error
        return _unwrap(Fields.parse("the writer's answer", line, _MOST_ANSWER_BYTES))


def _write(store: Store, data: memoryview, folder: str, path: str, before_part: Callable[[], None]) -> File:
    # Digests are computed beside the writes: both leave the interpreter's lock, and the medium is what takes long.
    with ThreadPoolExecutor(1, "digests") as pool:
        digests: list[Future[list[str]]] = []

        def parts() -> Iterator[memoryview]:
            for start in range(0, len(data), PART_BYTES):
                before_part()
                part = data[start : start + PART_BYTES]
                digests.append(pool.submit(block_digests, part))
                yield part

        store.put(f"{folder}/{path}", parts())
        found = tuple(digest for part in digests for digest in part.result())
    return File(path=path, size=len(data), block_bytes=BLOCK_BYTES, blocks=found)


def _copy(source: Store, store: Store, folder: str, file: File, before_part: Callable[[], None]) -> None:
    key = f"{folder}/{file.path}"

    def parts() -> Iterator[memoryview]:
        for part in checked_parts(source, key, file):
            before_part()
            yield memoryview(bytes(part))  # a store may ask for the next part before it is done with this one

    store.put(key, parts())


def _unwrap(answer: Fields) -> Fields:
    """The answer, unless it is an error: that is raised here, as it was raised there."""
    match answer.text("kind"):
        case "done":
            return answer
        case "corrupt":
            raise CorruptCheckpoint(answer.text("where"), answer.text("what"))
        case kind:
            error = StoreUnwritable if kind == "unwritable" else StoreError
            raise error(answer.text("operation"), answer.text("key"), answer.text("reason"))


def _answer(arena: memoryview, command: Fields, before_part: Callable[[], None]) -> dict[str, object]:
    folder = command.text("folder")
    try:
        store = _store(command.text("store"))
        if command.text("do") == "write":
            size = command.integer("size", most=len(arena))
            written = _write(store, arena[:size], folder, command.text("path"), before_part)
            return {"kind": "done", "file": written.to_json()}
        file = File.from_json(command.inner("file"))
        if command.text("do") == "copy":
            _copy(_store(command.text("source")), store, folder, file, before_part)
        else:
            verify_file(store, f"{folder}/{file.path}", file)
        return {"kind": "done"}
    except StoreError as error:
        kind = "unwritable" if isinstance(error, StoreUnwritable) else "store"
        return {"kind": kind, "operation": error.operation, "key": error.key, "reason": one_line(error.reason)}
    except CorruptCheckpoint as error:
        return {"kind": "corrupt", "where": error.where, "what": error.what}


@cache
def _store(url: str) -> Store:
    return open_store(url)


def _forward_signals(parent: int) -> None:
    """A scheduler signals every process of a job: what it tells this one is meant for the training process."""

    def forward(number: int, _frame: FrameType | None) -> None:
        if os.getppid() == parent:
            os.kill(parent, number)

    for number in _SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def main(arena_descriptor: int, socket_descriptor: int, parent: int) -> None:
    """Answer commands until the parent closes the socket or dies."""
    _forward_signals(parent)
    arena = memoryview(mmap.mmap(arena_descriptor, 0, access=mmap.ACCESS_READ))

    def leave_if_orphaned() -> None:
        if os.getppid() != parent:  # a forked process may still hold the other end of our socket open
            os._exit(1)

    with socket.socket(fileno=socket_descriptor) as connection, connection.makefile("rwb") as stream:
        commands = select.poll()
        commands.register(connection, select.POLLIN)
        while True:
            leave_if_orphaned()
            if not commands.poll(1000):
                continue
            line = stream.readline()
            if not line:
                return
            command = Fields.parse("the command", line, _MOST_ANSWER_BYTES)
            stream.write(encode(_answer(arena, command, leave_if_orphaned)))
            stream.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, ConnectionResetError):  # the parent died while its answer was under way
        main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
