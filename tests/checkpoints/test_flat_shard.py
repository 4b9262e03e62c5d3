from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from checkpoints.flat_shard import Box, FlatShard, boxes, part_of

SHAPES = [
    *((n,) for n in range(1, 5)),
    *itertools.product((1, 2, 3, 4), repeat=2),
    *itertools.product((1, 2, 3), repeat=3),
    *itertools.product((1, 2, 3), (1, 2), (1, 2, 3), (1, 2)),
]


def items_of(shape: tuple[int, ...], box: Box) -> Iterator[int]:
    """Where the items of a box lie in the flat tensor."""
    offsets, lengths = box
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    for place in itertools.product(*(range(o, o + n) for o, n in zip(offsets, lengths, strict=True))):
        yield sum(i * stride for i, stride in zip(place, strides, strict=True))


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_any_flat_slice_of_any_tensor_is_a_few_boxes_in_order(dims):
    for shape in (shape for shape in SHAPES if len(shape) == dims):
        for start, end in itertools.combinations_with_replacement(range(math.prod(shape) + 1), 2):
            found = list(boxes(shape, start, end))
            assert [i for box in found for i in items_of(shape, box)] == list(range(start, end)), (shape, start, end)
            assert len(found) <= 2 * dims - 1


def test_a_tensor_without_dimensions_or_without_items_has_one_box_or_none():
    assert list(boxes((), 0, 1)) == [((), ())]
    assert list(boxes((), 0, 0)) == []
    assert list(boxes((3, 0, 2), 0, 0)) == []


def test_its_parts_are_live_views_of_its_items():
    shard = FlatShard(items=torch.arange(4.0, 17.0), shape=(4, 3, 2), start=4)
    whole = torch.arange(24.0).view(4, 3, 2)
    for chunk in shard.__create_chunk_list__():
        part = part_of(shard, MetadataIndex("name", chunk.offsets))
        box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        assert torch.equal(part, whole[box])
        part.fill_(-1.0)
    assert torch.equal(shard.items, torch.full((13,), -1.0))
    with pytest.raises(KeyError):
        part_of(shard, MetadataIndex("name", torch.Size((0, 0, 0))))
