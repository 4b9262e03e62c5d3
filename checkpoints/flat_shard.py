"""A flat slice of a tensor, as ZeRO cuts them, that is saved and restored under the tensor's name and shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.utils import find_tensor_shard

Box = tuple[tuple[int, ...], tuple[int, ...]]


def boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[Box]:
    """Offsets and lengths of the boxes that the items [start, end) of a tensor consist of, in their order.

    They are few: an incomplete row in front, whole rows, an incomplete row behind, and the same inside of those rows.
    """
    if start >= end:
        return
    if len(shape) <= 1:
        yield (start,)[: len(shape)], (end - start,)[: len(shape)]
        return
    row_items = math.prod(shape[1:])
    row, last = start // row_items, end // row_items
    if start % row_items:
        for offsets, lengths in boxes(shape[1:], start % row_items, min(end - row * row_items, row_items)):
            yield (row, *offsets), (1, *lengths)
        row += 1
    if last > row:
        yield (row, *(0 for _ in shape[1:])), (last - row, *shape[1:])
    if last >= row:
        for offsets, lengths in boxes(shape[1:], 0, end - last * row_items):
            yield (last, *offsets), (1, *lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatShard:
    """What a rank holds of a tensor of this `shape`: its items from `start` on, in row-major order; maybe none.

    `items` is one-dimensional, and live: a restore writes into it. The methods in underscores are those that torch's
    distributed checkpoints ask of anything that is held in parts.
    """

    items: torch.Tensor
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> torch.dtype:
        return self.items.dtype

    def size(self) -> torch.Size:
        """Of the whole tensor."""
        return torch.Size(self.shape)

    def boxes(self) -> Iterator[Box]:
        return boxes(self.shape, self.start, self.start + len(self.items))

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(lengths))
            for offsets, lengths in self.boxes()
        ]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        position = 0
        for offsets, lengths in self.boxes():
            count = math.prod(lengths)
            if index.offset == torch.Size(offsets):
                return self.items[position : position + count].view(lengths)
            position += count
        raise KeyError(index)


State = Mapping[str, torch.Tensor | FlatShard]


def part_of(value: torch.Tensor | FlatShard, index: MetadataIndex) -> torch.Tensor:
    """The box at `index` of what a rank holds, as a live view."""
    return find_tensor_shard(value, index)  # type: ignore[arg-type]  # it asks whatever is held in parts


def held_parts(tensors: State) -> Iterator[tuple[str, tuple[slice, ...], torch.Tensor]]:
    """(name, where in the whole tensor, live view) of each box that a rank holds."""
    for item in create_default_local_save_plan(dict(tensors), is_coordinator=False).items:
        assert item.tensor_data is not None
        chunk = item.tensor_data.chunk
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        yield item.index.fqn, box, part_of(tensors[item.index.fqn], item.index)
