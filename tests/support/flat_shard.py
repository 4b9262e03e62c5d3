"""A tensor that a rank holds as a flat slice, as ZeRO-3 does, and that DCP saves under its name and shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], tuple[int, ...]]


def boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[Box]:
    """Offsets and lengths of the boxes that the items `start` to `end` of a tensor consist of, in their order."""
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    inner = math.prod(shape[1:])
    row, last = start // inner, end // inner
    if start % inner:
        for offsets, lengths in boxes(shape[1:], start % inner, min(end - row * inner, inner)):
            yield (row, *offsets), (1, *lengths)
        row += 1
    if last > row:
        yield (row, *(0 for _ in shape[1:])), (last - row, *shape[1:])
        row = last
    if row == last:
        for offsets, lengths in boxes(shape[1:], 0, end - last * inner):
            yield (last, *offsets), (1, *lengths)


class FlatShard(torch.Tensor):
    """Items `start` and following of a tensor of shape `whole`."""

    whole: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, flat: torch.Tensor, whole: tuple[int, ...], start: int) -> FlatShard:
        shard = flat.as_subclass(cls)
        shard.whole, shard.start = whole, start
        return shard

    def size(self, *_: Any) -> torch.Size:  # type: ignore[override]
        return torch.Size(self.whole)

    def boxes(self) -> list[Box]:
        return list(boxes(self.whole, self.start, self.start + torch.Tensor.size(self)[0]))

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

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(lengths))
            for offsets, lengths in self.boxes()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        flat = self.as_subclass(torch.Tensor)
        start = 0
        for offsets, lengths in self.boxes():
            if index.offset == torch.Size(offsets):
                return flat[start : start + math.prod(lengths)].view(lengths)
            start += math.prod(lengths)
        raise KeyError(index)
