"""What one save holds: its files with their digests, and where each tensor lies in them. JSON only, nothing runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise

from checkpoints.errors import CorruptCheckpoint, StoreError
from checkpoints.store import check_key
from checkpoints.strict_json import MOST, Fields, Json, encode

FORMAT = 2
BLOCK_BYTES = 1024 * 1024
PART_BYTES = 8 * BLOCK_BYTES  # what is read at once
PAGE_BYTES = 4096  # files are padded to whole pages, so that they can be written past the page cache
MOST_BYTES = 512 * 1024 * 1024
MOST_DIMS = 16
ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}


def block_digest(block: bytes | memoryview) -> str:
    """XXH3, 128 bits: as fast as memory is read. It tells damage; that nobody forged the bytes, no digest here can."""
    from xxhash import xxh3_128_hexdigest

    return xxh3_128_hexdigest(block)


def block_digests(data: memoryview) -> list[str]:
    return [block_digest(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a save. Each block of it has a digest, so that a reader verifies only the blocks that it needs."""

    path: str
    size: int
    block_bytes: int
    blocks: tuple[str, ...]

    @classmethod
    def of(cls, path: str, data: bytes) -> File:
        """The file that holds these bytes."""
        blocks = tuple(block_digests(memoryview(data)))
        return cls(path=path, size=len(data), block_bytes=BLOCK_BYTES, blocks=blocks)

    @property
    def digest(self) -> str:
        return block_digest("".join(self.blocks).encode())

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "digest": self.digest}

    @classmethod
    def from_json(cls, fields: Fields) -> File:
        try:
            path = check_key(fields.text("path"))
        except StoreError as error:
            raise fields.bad("path", "is not a key") from error
        block_bytes = fields.integer("block_bytes", least=PAGE_BYTES, most=2**30)
        size = fields.integer("size", least=1)
        blocks = fields.items("blocks")
        if len(blocks) != -(-size // block_bytes):
            raise fields.bad("blocks", f"are {len(blocks)}, which {size} bytes do not need")
        file = cls(path=path, size=size, block_bytes=block_bytes, blocks=tuple(str(block) for block in blocks))
        if fields.text("digest") != file.digest:
            raise fields.bad("digest", "is not that of the blocks")
        return file


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A box of a tensor, row-major from byte `start` of a file."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    file: str
    start: int

    def to_json(self) -> dict[str, object]:
        return {"offsets": self.offsets, "lengths": self.lengths, "file": self.file, "start": self.start}

    @classmethod
    def from_json(cls, fields: Fields) -> Chunk:
        return cls(
            offsets=fields.integers("offsets", MOST_DIMS),
            lengths=fields.integers("lengths", MOST_DIMS),
            file=fields.text("file"),
            start=fields.integer("start"),
        )

    def overlaps(self, other: Chunk) -> bool:
        boxes = zip(self.offsets, self.lengths, other.offsets, other.lengths, strict=True)
        return all(a < b + b_length and b < a + a_length for a, a_length, b, b_length in boxes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor by name, and the chunks that it consists of. One without elements has none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def to_json(self) -> dict[str, object]:
        chunks = [chunk.to_json() for chunk in self.chunks]
        return {"name": self.name, "dtype": self.dtype, "shape": self.shape, "chunks": chunks}

    @classmethod
    def from_json(cls, fields: Fields) -> Tensor:
        tensor = cls(
            name=fields.text("name"),
            dtype=fields.text("dtype"),
            shape=fields.integers("shape", MOST_DIMS),
            chunks=tuple(Chunk.from_json(chunk) for chunk in fields.objects("chunks")),
        )
        if tensor.dtype not in ITEM_BYTES:
            raise fields.bad("dtype", f"{tensor.dtype} is not known")
        # An empty one may have a dimension that no array can have, too.
        if math.prod(max(size, 1) for size in tensor.shape) * ITEM_BYTES[tensor.dtype] > MOST:
            raise fields.bad("shape", "is larger than any tensor")
        if not tensor.is_tiled():
            raise fields.bad("chunks", f"do not cover {tensor.name} exactly once")
        return tensor

    def is_tiled(self) -> bool:
        """Whether the chunks lie inside the tensor, do not overlap, and together are all of it."""
        dims = len(self.shape)
        for chunk in self.chunks:
            if len(chunk.offsets) != dims or len(chunk.lengths) != dims or 0 in chunk.lengths:
                return False
            ends = map(sum, zip(chunk.offsets, chunk.lengths, strict=True))
            if any(end > size for end, size in zip(ends, self.shape, strict=True)):
                return False
        if self._is_grid():
            return True
        volume = sum(math.prod(chunk.lengths) for chunk in self.chunks)
        return volume == math.prod(self.shape) and not any(a.overlaps(b) for a, b in _neighbours(self.chunks, dims))

    def _is_grid(self) -> bool:
        """Whether each axis is cut at the same places everywhere, as meshes do: quicker to check than any tiling."""
        cuts = [sorted({chunk.offsets[dim] for chunk in self.chunks}) for dim in range(len(self.shape))]
        ends = [dict(pairwise([*starts, size])) for starts, size in zip(cuts, self.shape, strict=True)]
        return (
            math.prod(map(len, cuts)) == len(self.chunks) == len({chunk.offsets for chunk in self.chunks})
            and all(starts[:1] == [0] for starts in cuts)
            and all(
                offset + length == axis[offset]
                for chunk in self.chunks
                for offset, length, axis in zip(chunk.offsets, chunk.lengths, ends, strict=True)
            )
        )

    def bytes_of(self, chunk: Chunk) -> int:
        return math.prod(chunk.lengths) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that a reader needs. `metadata` is what the caller of the save gave, as it was."""

    step: int
    world_size: int
    metadata: Mapping[str, Json]
    files: tuple[File, ...]
    tensors: tuple[Tensor, ...]

    def to_bytes(self) -> bytes:
        return encode(
            {
                "format": FORMAT,
                "step": self.step,
                "world_size": self.world_size,
                "metadata": dict(self.metadata),
                "files": [file.to_json() for file in self.files],
                "tensors": [tensor.to_json() for tensor in self.tensors],
            }
        )

    @classmethod
    def from_bytes(cls, where: str, data: bytes) -> Manifest:
        """The manifest. Raises CorruptCheckpoint for anything that a save could not have written."""
        fields = Fields.parse(where, data, MOST_BYTES)
        fields.integer("format", least=FORMAT, most=FORMAT)
        manifest = cls(
            step=fields.integer("step"),
            world_size=fields.integer("world_size", least=1),
            metadata=fields.mapping("metadata"),
            files=tuple(File.from_json(file) for file in fields.objects("files")),
            tensors=tuple(Tensor.from_json(tensor) for tensor in fields.objects("tensors")),
        )
        _check_unique(fields, "files", [file.path for file in manifest.files])
        _check_unique(fields, "tensors", [tensor.name for tensor in manifest.tensors])
        _check_places(fields, manifest)
        return manifest


def manifest_digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _check_unique(fields: Fields, name: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        raise fields.bad(name, "have the same name twice")


def _check_places(fields: Fields, manifest: Manifest) -> None:
    """Each chunk lies inside its file, aligned, and shares no byte with another."""
    sizes = {file.path: file.size for file in manifest.files}
    places: list[tuple[str, int, int]] = []
    for tensor in manifest.tensors:
        for chunk in tensor.chunks:
            end = chunk.start + tensor.bytes_of(chunk)
            if end > sizes.get(chunk.file, 0) or chunk.start % ITEM_BYTES[tensor.dtype]:
                raise fields.bad("tensors", f"put {tensor.name} where {chunk.file} has no place for it")
            places.append((chunk.file, chunk.start, end))
    places.sort()
    for (file, _, end), (next_file, start, _) in pairwise(places):
        if file == next_file and start < end:
            raise CorruptCheckpoint(fields.where, f"two tensors claim byte {start} of {file}")


def _neighbours(chunks: Iterable[Chunk], dims: int) -> Iterator[tuple[Chunk, Chunk]]:
    """The pairs that could overlap: a sweep along the axis that is cut most often, not all pairs."""
    chunks = list(chunks)
    if dims == 0:
        yield from pairwise(chunks)
        return
    axis = max(range(dims), key=lambda dim: len({chunk.offsets[dim] for chunk in chunks}))
    active: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[axis]):
        active = [other for other in active if other.offsets[axis] + other.lengths[axis] > chunk.offsets[axis]]
        yield from ((other, chunk) for other in active)
        active.append(chunk)
