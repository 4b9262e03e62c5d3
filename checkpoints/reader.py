"""Reading commits: no byte is used before the digest of its block has been checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from checkpoints.entry import Commit
from checkpoints.errors import CorruptCheckpoint, KeyMissing, StoreError
from checkpoints.manifest import (
    ITEM_BYTES,
    MOST_BYTES,
    PART_BYTES,
    Chunk,
    File,
    Manifest,
    Tensor,
    block_digest,
    manifest_digest,
)
from checkpoints.store import Store
from checkpoints.strict_json import encode

_PARTS = {"model": "weights", "optimizer": "optimizer"}


class Source(Protocol):
    """Where bytes of files can be had, such as a store. What it gives is checked."""

    def get(self, key: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from byte `start`. Raises StoreError."""


class CommitReader:
    """Byte ranges of the files of one commit, from where they are nearest. Made by `open_commit`."""

    def __init__(self, store: Store, commit: Commit, manifest: Manifest, nearer: Sequence[Source]) -> None:
        self.manifest = manifest
        self._store = store
        self._nearer = nearer
        self._commit = commit
        self._files = {file.path: file for file in manifest.files}
        self._last: tuple[str, int, bytes] = ("", 0, b"")  # small tensors that follow each other share a block

    def read(self, path: str, start: int, length: int) -> bytearray:
        """Verified bytes of a file. Raises CorruptCheckpoint naming the file and the block."""
        data = bytearray(length)
        done = 0
        while done < length:
            part = self._part(self._files[path], start + done, start + length)
            data[done : done + len(part)] = part
            done += len(part)
        return data

    def read_chunk(self, tensor: Tensor, chunk: Chunk, first: int, count: int) -> bytearray:
        """`count` items of a chunk, in row-major order, from item `first`."""
        size = ITEM_BYTES[tensor.dtype]
        return self.read(chunk.file, chunk.start + first * size, count * size)

    def _part(self, file: File, start: int, end: int) -> memoryview:
        """Verified bytes from `start` on: up to `end`, or as many of them as are read at once."""
        path, first, part = self._last
        if path != file.path or not first <= start < first + len(part):
            first = start - start % file.block_bytes
            blocks = min(-(-(end - first) // file.block_bytes), _blocks_at_once(file))
            part = self._blocks(file, first // file.block_bytes, blocks)
            self._last = (file.path, first, part)
        return memoryview(part)[start - first : end - first]

    def _blocks(self, file: File, first: int, count: int) -> bytes:
        for source in self._nearer:
            with suppress(CorruptCheckpoint, StoreError):
                return self._blocks_in(source, file, first, count)
        return self._blocks_in(self._store, file, first, count)

    def _blocks_in(self, source: Source, file: File, first: int, count: int) -> bytes:
        key = f"{self._commit.folder}/{file.path}"
        blocks = source.get(key, first * file.block_bytes, count * file.block_bytes)
        for i in range(count):
            check_block(key, file, first + i, _block(blocks, file, i))
        return blocks


def open_commit(store: Store, commit: Commit, nearer: Sequence[Source] = ()) -> CommitReader:
    """A reader of the commit, whose manifest is right and whose files are all there, with the right sizes.

    nearer: what may have it, in part or whole, and is asked before the store, in this order. Of a commit that is not in
    the store, reading tells whether they do.

    Raises CorruptCheckpoint.
    """
    sizes = store.list(f"{commit.folder}/")
    if sizes.get(commit.manifest_key, 0) > MOST_BYTES:
        raise CorruptCheckpoint(commit.manifest_key, f"is longer than {MOST_BYTES} bytes")
    try:
        data = store.get(commit.manifest_key, 0, MOST_BYTES + 1)
    except KeyMissing as error:
        raise CorruptCheckpoint(commit.manifest_key, "is missing") from error
    if manifest_digest(data) != commit.manifest_digest:
        raise CorruptCheckpoint(commit.manifest_key, "the bytes are not those that were committed")
    manifest = Manifest.from_bytes(commit.manifest_key, data)
    size = sum(file.size for file in manifest.files)
    if (manifest.step, size) != (commit.step, commit.bytes):
        said = f"step {commit.step} and {commit.bytes} bytes, and it has step {manifest.step} and {size} bytes"
        raise CorruptCheckpoint(commit.manifest_key, f"the log says {said}")
    if commit.is_stored:
        check_sizes(sizes, commit.folder, manifest)
    return CommitReader(store, commit, manifest, nearer)


def check_sizes(sizes: Mapping[str, int], folder: str, manifest: Manifest) -> None:
    """Raises CorruptCheckpoint for a file that is missing or has another size than the store says."""
    for file in manifest.files:
        key = f"{folder}/{file.path}"
        if sizes.get(key) != file.size:
            found = f"has {sizes[key]} bytes instead of {file.size}" if key in sizes else "is missing"
            raise CorruptCheckpoint(key, found)


def check_block(key: str, file: File, i: int, block: bytes | memoryview) -> None:
    """Raises CorruptCheckpoint unless this is block `i` of the file."""
    expected = min(file.block_bytes, file.size - i * file.block_bytes)
    if len(block) != expected:
        raise CorruptCheckpoint(key, f"block {i} has {len(block)} bytes instead of {expected}")
    if block_digest(block) != file.blocks[i]:
        raise CorruptCheckpoint(key, f"block {i} (byte {i * file.block_bytes}) has the wrong digest")


def _blocks_at_once(file: File) -> int:
    return max(1, PART_BYTES // file.block_bytes)


def _block(part: bytes | memoryview, file: File, i: int) -> memoryview:
    return memoryview(part)[i * file.block_bytes : (i + 1) * file.block_bytes]


def verify_file(store: Store, key: str, file: File) -> None:
    """Read the whole file back from the medium. Raises CorruptCheckpoint naming the first block that is wrong."""
    for _ in checked_parts(store, key, file):
        pass


def checked_parts(store: Store, key: str, file: File) -> Iterator[memoryview]:
    """The file from the medium, each part once it is known to be right. Raises CorruptCheckpoint."""
    count = 0
    try:
        for part in store.read_back(key, _blocks_at_once(file) * file.block_bytes):
            for i in range(-(-len(part) // file.block_bytes)):
                if count == len(file.blocks):
                    raise CorruptCheckpoint(key, f"is longer than {file.size} bytes")
                check_block(key, file, count, _block(part, file, i))
                count += 1
            yield part
    except KeyMissing as error:
        raise CorruptCheckpoint(key, "is missing") from error
    if count < len(file.blocks):
        raise CorruptCheckpoint(key, f"ends before block {count}")


def verify(store: Store, commit: Commit) -> None:
    """Read every byte of the commit. Raises CorruptCheckpoint naming the file and the block."""
    manifest = open_commit(store, commit).manifest
    for file in manifest.files:
        verify_file(store, f"{commit.folder}/{file.path}", file)


def digests(store: Store, commit: Commit) -> dict[str, str]:
    """One digest for each part of the commit: weights, optimizer, and samples where the metadata has that.

    It depends on the tensors alone, not on how many ranks saved them nor on how they were cut, so that two runs are
    compared by comparing their digests. Raises CorruptCheckpoint.
    """
    reader = open_commit(store, commit)
    tensors = sorted(reader.manifest.tensors, key=_place)  # each block is read once, when they are taken in this order
    lines = {tensor.name: _line(reader, tensor) for tensor in tensors}
    parts: dict[str, list[bytes]] = {}
    for name in sorted(lines):
        prefix = name.partition(".")[0]
        parts.setdefault(_PARTS.get(prefix, prefix), []).append(lines[name])
    result = {part: block_digest(b"".join(lines)) for part, lines in sorted(parts.items())}
    if "samples" in reader.manifest.metadata:
        result["samples"] = block_digest(encode({"samples": reader.manifest.metadata["samples"]}))
    return result


def _place(tensor: Tensor) -> tuple[str, int]:
    return (tensor.chunks[0].file, tensor.chunks[0].start) if tensor.chunks else ("", 0)


def _line(reader: CommitReader, tensor: Tensor) -> bytes:
    """The tensor's name, type, shape and digest over all of its bytes, row-major."""
    import numpy

    item_bytes = ITEM_BYTES[tensor.dtype]
    whole = numpy.empty((*tensor.shape, item_bytes), numpy.uint8)
    for chunk in tensor.chunks:
        data = reader.read_chunk(tensor, chunk, 0, math.prod(chunk.lengths))
        box = tuple(slice(start, start + length) for start, length in zip(chunk.offsets, chunk.lengths, strict=True))
        whole[box] = numpy.frombuffer(data, numpy.uint8).reshape(*chunk.lengths, item_bytes)
    digest = block_digest(whole.reshape(-1).data)
    return encode({"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "digest": digest})
