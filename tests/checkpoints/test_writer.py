"""The real writer process."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.writers import kill_when_it_has_a_command, stop

from checkpoints.arena import Arena
from checkpoints.errors import CorruptCheckpoint, StoreError
from checkpoints.manifest import BLOCK_BYTES, block_digest
from checkpoints.posix_store import PosixStore
from checkpoints.writer import PART_BYTES, WriterProcess

SIZE = PART_BYTES + 3 * 4096
FOLDER = "data/1-1-ab"


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(SIZE)
    arena.memory[:] = os.urandom(SIZE)
    yield arena
    arena.close()


@pytest.fixture
def writer(arena: Arena, tmp_path: Path) -> Iterator[WriterProcess]:
    writer = WriterProcess(arena)
    yield writer
    writer.close()


@pytest.fixture
def store(tmp_path: Path) -> PosixStore:
    return PosixStore(tmp_path)


def wait_for_end(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} has not ended"
    finally:
        os.close(descriptor)


def test_the_arena_is_written_and_each_block_digested(
    writer: WriterProcess, arena: Arena, tmp_path: Path, store: PosixStore
) -> None:
    file = writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    data = bytes(arena.memory)
    assert PosixStore(tmp_path).get(f"{FOLDER}/rank-00000.bin") == data
    assert file.blocks == tuple(
        block_digest(data[start : start + BLOCK_BYTES]) for start in range(0, SIZE, BLOCK_BYTES)
    )
    writer.verify(store, FOLDER, file, 20)


def test_reading_back_finds_a_flipped_bit_and_says_where(
    writer: WriterProcess, tmp_path: Path, store: PosixStore
) -> None:
    file = writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    with (tmp_path / FOLDER / "rank-00000.bin").open("r+b") as stream:
        stream.seek(BLOCK_BYTES + 5)
        byte = stream.read(1)[0]
        stream.seek(BLOCK_BYTES + 5)
        stream.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptCheckpoint, match=r"rank-00000.bin: block 1 \(byte 1048576\) has the wrong digest"):
        writer.verify(store, FOLDER, file, 20)


@pytest.mark.parametrize("length", [0, 5, BLOCK_BYTES, SIZE - 1, SIZE + 1])
def test_reading_back_finds_another_length(
    writer: WriterProcess, tmp_path: Path, length: int, store: PosixStore
) -> None:
    file = writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    os.truncate(tmp_path / FOLDER / "rank-00000.bin", length)
    with pytest.raises(CorruptCheckpoint, match=r"rank-00000\.bin"):
        writer.verify(store, FOLDER, file, 20)


def test_reading_back_finds_that_a_file_is_missing(writer: WriterProcess, store: PosixStore) -> None:
    file = replace(writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20), path="rank-00001.bin")
    with pytest.raises(CorruptCheckpoint, match="is missing"):
        writer.verify(store, FOLDER, file, 20)


def test_a_file_is_copied_to_another_store(writer: WriterProcess, tmp_path: Path, store: PosixStore) -> None:
    other = PosixStore(tmp_path / "other")
    file = writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    writer.copy(store, other, FOLDER, file, 20)
    writer.verify(other, FOLDER, file, 20)


def test_a_damaged_file_is_not_copied(writer: WriterProcess, tmp_path: Path, store: PosixStore) -> None:
    other = PosixStore(tmp_path / "other")
    file = writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    os.truncate(tmp_path / FOLDER / "rank-00000.bin", SIZE - 1)
    with pytest.raises(CorruptCheckpoint, match="bytes instead of"):
        writer.copy(store, other, FOLDER, file, 20)
    assert other.list("data/") == {}


def test_a_write_that_the_kernel_stops_half_way_leaves_nothing(
    writer: WriterProcess, tmp_path: Path, store: PosixStore
) -> None:
    resource.prlimit(writer._process.pid, resource.RLIMIT_FSIZE, (BLOCK_BYTES, BLOCK_BYTES))
    with pytest.raises(StoreError, match="File too large"):
        writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    assert PosixStore(tmp_path).list("data/") == {}
    writer.write(store, FOLDER, "rank-00001.bin", BLOCK_BYTES, 20)


def test_a_killed_writer_fails_its_write_and_the_next_write_starts_another(
    writer: WriterProcess, store: PosixStore
) -> None:
    first = writer._process.pid
    stop(writer)
    killer = kill_when_it_has_a_command(writer)
    with pytest.raises(StoreError, match="exit code -9"):
        writer.write(store, FOLDER, "rank-00000.bin", SIZE, 20)
    killer.join()
    writer.write(store, FOLDER, "rank-00001.bin", SIZE, 20)
    assert writer._process.pid != first


def test_a_writer_that_does_not_answer_in_time_is_ended(writer: WriterProcess, store: PosixStore) -> None:
    first = writer._process.pid
    stop(writer)
    with pytest.raises(StoreError, match="timed out"):
        writer.write(store, FOLDER, "rank-00000.bin", SIZE, 0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_writer_is_handed_to_its_parent(
    writer: WriterProcess, number: signal.Signals, store: PosixStore
) -> None:
    writer.write(store, FOLDER, "rank-00000.bin", 4096, 20)  # it is up, and so are its handlers
    heard = threading.Event()
    before = signal.signal(number, lambda *_: heard.set())
    try:
        os.kill(writer._process.pid, number)
        assert heard.wait(20)
    finally:
        signal.signal(number, before)
    writer.write(store, FOLDER, "rank-00001.bin", 4096, 20)


def test_the_writer_ends_with_its_parent_even_if_a_forked_process_keeps_the_socket(tmp_path: Path) -> None:
    program = f"""
import os, time
from checkpoints.arena import Arena
from checkpoints.writer import WriterProcess
from checkpoints.posix_store import PosixStore
from pathlib import Path
writer = WriterProcess(Arena(4096))
writer.write(PosixStore(Path({str(tmp_path)!r})), "{FOLDER}", "rank-00000.bin", 4096, 20)
if os.fork() == 0:
    os.close(1)
    os.read(0, 1)
    os._exit(0)
print(writer._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        wait_for_end(pid)
