from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.errors import CorruptCheckpoint
from checkpoints.manifest import Chunk, File, Manifest, Tensor, block_digest

BLOCK = 4096


def a_file(path: str, size: int) -> File:
    blocks = tuple(block_digest(bytes(min(BLOCK, size - start))) for start in range(0, size, BLOCK))
    return File(path=path, size=size, block_bytes=BLOCK, blocks=blocks)


MANIFEST = Manifest(
    step=10,
    world_size=2,
    metadata={"samples": 80, "fingerprint": {"recipe": "tiny"}},
    files=(a_file("rank-00000.bin", 2 * BLOCK), a_file("rank-00001.bin", BLOCK)),
    tensors=(
        Tensor(
            name="model.weight",
            dtype="float32",
            shape=(4, 6),
            chunks=(
                Chunk(offsets=(0, 0), lengths=(3, 6), file="rank-00000.bin", start=64),
                Chunk(offsets=(3, 0), lengths=(1, 6), file="rank-00001.bin", start=0),
            ),
        ),
        Tensor(
            name="scalar",
            dtype="bfloat16",
            shape=(),
            chunks=(Chunk(offsets=(), lengths=(), file="rank-00000.bin", start=4096),),
        ),
        Tensor(name="nothing", dtype="bool", shape=(0, 3), chunks=()),
    ),
)
DATA = MANIFEST.to_bytes()


def test_a_manifest_comes_back_as_it_was_written() -> None:
    assert Manifest.from_bytes("here", DATA) == MANIFEST


def changed(change: Callable[[Any], None]) -> bytes:
    value = copy.deepcopy(json.loads(DATA))
    change(value)
    return json.dumps(value).encode()


def set_at(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def a_chunk(offsets: list[int], lengths: list[int], start: int = 0) -> dict[str, object]:
    return {"offsets": offsets, "lengths": lengths, "file": "rank-00000.bin", "start": start}


CHUNKS = ("tensors", 0, "chunks")


@pytest.mark.parametrize(
    "change",
    [
        set_at("format", to=3),
        set_at("step", to=-1),
        set_at("step", to=True),
        set_at("world_size", to=0),
        set_at("metadata", to=[]),
        set_at("files", to={}),
        set_at("files", 0, "path", to="../../etc/passwd"),
        set_at("files", 0, "path", to="/etc/passwd"),
        set_at("files", 0, "path", to="rank-00001.bin"),
        set_at("files", 0, "size", to=-1),
        set_at("files", 0, "size", to=0),
        set_at("files", 0, "size", to=2**61),
        set_at("files", 0, "size", to=10**30),
        set_at("files", 0, "size", to=4096.0),
        set_at("files", 0, "block_bytes", to=1),
        set_at("files", 0, "block_bytes", to=2**40),
        set_at("files", 0, "block_bytes", to=0),
        set_at("files", 0, "blocks", to=[]),
        set_at("files", 0, "blocks", 0, to="0" * 64),
        set_at("files", 0, "blocks", 0, to=None),
        set_at("files", 0, "digest", to="0" * 64),
        set_at("tensors", 0, "name", to="scalar"),
        set_at("tensors", 0, "name", to="a\nb"),
        set_at("tensors", 0, "name", to="x" * 2000),
        set_at("tensors", 0, "dtype", to="object"),
        set_at("tensors", 0, "shape", to=[4, -6]),
        set_at("tensors", 0, "shape", to=[4, 7]),
        set_at("tensors", 0, "shape", to=[24]),
        set_at("tensors", 0, "shape", to=[1] * 40),
        set_at("tensors", 0, "shape", to=[2**62, 2**62]),
        set_at(*CHUNKS, to=[]),
        set_at(*CHUNKS, to=None),
        set_at(*CHUNKS, 0, "file", to="rank-00007.bin"),
        set_at(*CHUNKS, 0, "start", to=-4),
        set_at(*CHUNKS, 0, "start", to=2),
        set_at(*CHUNKS, 0, "start", to=8192),
        set_at(*CHUNKS, 0, "start", to=4096),  # on top of the scalar
        set_at(*CHUNKS, 0, "lengths", to=[3, 0]),
        set_at(*CHUNKS, 0, "lengths", to=[3]),
        set_at(*CHUNKS, 0, "offsets", to=[1, 0]),
        set_at(*CHUNKS, 0, "offsets", to=[0, 2**62]),
        set_at(*CHUNKS, to=[a_chunk([0, 0], [2, 6]), a_chunk([1, 0], [2, 6], 64)]),  # twelve twice, twelve never
        set_at(*CHUNKS, to=[a_chunk([0, 0], [4, 6]), a_chunk([0, 0], [4, 6], 128)]),
        set_at("tensors", 1, "chunks", to=[a_chunk([], []), a_chunk([], [], 64)]),
    ],
)
def test_a_manifest_that_no_save_could_have_written_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(CorruptCheckpoint, match="here"):
        Manifest.from_bytes("here", changed(change))


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\x80\x04pickle", b"[" * 100_000, b'{"metadata":' * 50_000, DATA[:-40], b'{"step": NaN}'],
)
def test_what_is_not_a_manifest_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        Manifest.from_bytes("here", data)


@given(st.data())
def test_whatever_one_value_is_replaced_by_the_manifest_is_refused_or_means_what_was_read(data: st.DataObject) -> None:
    value = json.loads(DATA)
    place: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.just({})
        )
        break
    try:
        manifest = Manifest.from_bytes("here", json.dumps(value).encode())
    except CorruptCheckpoint:
        return
    assert Manifest.from_bytes("here", manifest.to_bytes()) == manifest


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_a_grid_of_chunks_tiles_a_tensor_until_one_is_moved_or_lost(shape: list[int], data: st.DataObject) -> None:
    cuts = [sorted({0, size, *data.draw(st.sets(st.integers(0, size)))}) for size in shape]
    boxes = list(product(*(list(pairwise(cut)) for cut in cuts)))
    chunks = tuple(
        Chunk(offsets=tuple(low for low, _ in box), lengths=tuple(high - low for low, high in box), file="f", start=0)
        for box in data.draw(st.permutations(boxes))
    )
    whole = Tensor(name="t", dtype="uint8", shape=tuple(shape), chunks=chunks)
    assert whole.is_tiled()
    assert not replace(whole, chunks=chunks[1:]).is_tiled()
    if len(chunks) > 1 and math.prod(chunks[0].lengths) == math.prod(chunks[1].lengths):
        assert not replace(whole, chunks=(chunks[0], *chunks[:1], *chunks[2:])).is_tiled()


class Uncompared(Chunk):
    """Comparing chunks with each other is what takes long when there are many."""

    def overlaps(self, other: Chunk) -> bool:
        raise AssertionError("compared")


def test_a_grid_is_checked_without_comparing_its_chunks() -> None:
    chunks = [
        Uncompared(offsets=(row, column), lengths=(2, 3), file="rank-00000.bin", start=0)
        for row, column in product(range(0, 8, 2), range(0, 9, 3))
    ]
    assert Tensor(name="grid", dtype="bool", shape=(8, 9), chunks=tuple(chunks)).is_tiled()
