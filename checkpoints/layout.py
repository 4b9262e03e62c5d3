"""Who saves what, and where it lies: the pieces of tensors that ranks hold, laid out one after the other in files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checkpoints.errors import StateMismatch
from checkpoints.manifest import ITEM_BYTES, MOST_DIMS, PAGE_BYTES, Chunk, Tensor
from checkpoints.strict_json import Fields

_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A box of a tensor that a rank holds and could save. `is_shard` is false for a tensor that is not sharded."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    is_shard: bool

    @classmethod
    def from_json(cls, fields: Fields) -> Piece:
        return cls(
            name=fields.text("name"),
            dtype=fields.text("dtype"),
            shape=fields.integers("shape", MOST_DIMS),
            offsets=fields.integers("offsets", MOST_DIMS),
            lengths=fields.integers("lengths", MOST_DIMS),
            is_shard=fields.boolean("is_shard"),
        )

    @property
    def size(self) -> int:
        return math.prod(self.lengths) * ITEM_BYTES[self.dtype]


def file_name(rank: int) -> str:
    """The file of a rank in the folder of a save."""
    return f"rank-{rank:05d}.bin"


def place(pieces: Sequence[Piece]) -> tuple[list[int], int]:
    """At which byte of the rank's file each piece starts, and the size of the file: whole pages, 0 without pieces."""
    starts, end = [], 0
    for piece in pieces:
        starts.append(end)
        end += -(-piece.size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return starts, -(-end // PAGE_BYTES) * PAGE_BYTES


def tensors(ranks: Sequence[Sequence[Piece]]) -> tuple[Tensor, ...]:
    """The tensors that the ranks save together. Raises StateMismatch when some of one is saved twice, or by nobody."""
    found: dict[str, Tensor] = {}
    chunks: dict[str, list[Chunk]] = {}
    for piece, chunk in _chunks(ranks):
        tensor = Tensor(name=piece.name, dtype=piece.dtype, shape=piece.shape, chunks=())
        if found.setdefault(piece.name, tensor) != tensor:
            raise StateMismatch(f"{piece.name} has another shape or dtype on another rank")
        if piece.size:
            chunks.setdefault(piece.name, []).append(chunk)
    whole = tuple(
        Tensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, chunks=tuple(chunks.get(tensor.name, ())))
        for tensor in found.values()
    )
    for tensor in whole:
        if not tensor.is_tiled():
            raise StateMismatch(f"the ranks together do not hold each part of {tensor.name} {tensor.shape} once")
    return whole


def _chunks(ranks: Sequence[Sequence[Piece]]) -> Iterator[tuple[Piece, Chunk]]:
    for rank, pieces in enumerate(ranks):
        for start, piece in zip(place(pieces)[0], pieces, strict=True):
            yield piece, Chunk(offsets=piece.offsets, lengths=piece.lengths, file=file_name(rank), start=start)
