"""The ways to damage a log with two commits on a disk, each undone after one restore."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

from support.attic import Attic

from checkpoints.entry import Commit, Entry

PAGE_BYTES = 4096
MOST_CUT_BYTES = 2**20
EVERY_COMMIT = "every commit: a flipped bit each"
Damage = Callable[[], AbstractContextManager[object]]


def verdicts(attic: Attic, random: Random) -> Iterator[tuple[str, str]]:
    """For ever: (kind of damage, what was wrong with how a run took it, or empty), each kind once in a round."""
    while True:
        kinds = sorted(damages(attic, random))
        for kind in random.sample(kinds, len(kinds)):
            before = set(attic.entries())
            with damages(attic, random)[kind]():
                wrong = attic.misses_damage_of_all() if kind == EVERY_COMMIT else attic.misses_damage()
            for path in set(attic.entries()) - before:
                path.unlink()
            yield kind, wrong


def damages(attic: Attic, random: Random) -> dict[str, Damage]:
    return {
        **_of_shards(attic, random),
        **_of_texts(attic, random),
        **_of_signed_entries(attic),
        EVERY_COMMIT: lambda: _all_flipped(attic, random),
    }


def flip(path: Path, random: Random) -> AbstractContextManager[None]:
    """One bit, anywhere in the file."""
    at = random.randrange(path.stat().st_size)
    (byte,) = _read(path, at, 1)
    return _overwritten(path, at, bytes([byte ^ 1 << random.randrange(8)]))


def _of_shards(attic: Attic, random: Random) -> dict[str, Damage]:
    shards = attic.shards(attic.newest)
    at = random.randrange(len(shards))
    shard, old, other = shards[at], attic.shards(attic.before)[at], shards[at - 1]
    size = shard.stat().st_size
    page = random.randrange(size // PAGE_BYTES) * PAGE_BYTES
    found: dict[str, Damage] = {
        "shard: a flipped bit": lambda: flip(shard, random),
        "shard: a zeroed page": lambda: _overwritten(shard, page, bytes(PAGE_BYTES)),
        "shard: a page of the commit before": lambda: _overwritten(shard, page, _read(old, page, PAGE_BYTES)),
        "shard: cut short": lambda: _resized(shard, size - random.randrange(1, min(size, MOST_CUT_BYTES))),
        "shard: longer": lambda: _resized(shard, size + random.randrange(1, 9999)),
        "shard: empty": lambda: _replaced(shard, _empty(attic)),
        "shard: missing": lambda: _replaced(shard, None),
        "shard: stale (of the commit before)": lambda: _replaced(shard, old),
    }
    if attic.ranks > 1:
        found["shard: of another rank"] = lambda: _replaced(shard, other)
        found["shards: two ranks swapped"] = lambda: _swapped(shard, other)
    return found


def _of_texts(attic: Attic, random: Random) -> dict[str, Damage]:
    (older_entry, entry), manifest = attic.entries()[-2:], attic.manifest(attic.newest)
    found: dict[str, Damage] = {"manifest: missing": lambda: _replaced(manifest, None)}
    for name, path, stale in (("manifest", manifest, attic.manifest(attic.before)), ("log entry", entry, older_entry)):
        found |= _of_text(name, path, stale, random)
    return found


def _of_text(name: str, path: Path, stale: Path, random: Random) -> dict[str, Damage]:
    size = path.stat().st_size
    return {
        f"{name}: a flipped bit": lambda: flip(path, random),
        f"{name}: cut short": lambda: _resized(path, random.randrange(size)),
        f"{name}: all zeroes": lambda: _overwritten(path, 0, bytes(size)),
        f"{name}: a digit edited": lambda: _edited(path, _with_a_digit_changed(random)),
        f"{name}: stale": lambda: _replaced(path, stale),
    }


def _of_signed_entries(attic: Attic) -> dict[str, Damage]:
    """The newest commit in the log is another one, and the entry's digest is computed anew."""
    entry = attic.entries()[-1]

    def signed(change: Callable[[Commit], Commit]) -> Damage:
        return lambda: _edited(entry, lambda data: sign(data, change))

    return {
        "entry re-signed: another step": signed(lambda commit: replace(commit, step=commit.step + 1)),
        "entry re-signed: another folder": signed(lambda commit: replace(commit, folder=attic.before.folder)),
        "entry re-signed: another digest": signed(lambda commit: replace(commit, manifest_digest="0" * 64)),
    }


def sign(data: bytes, change: Callable[[Commit], Commit]) -> bytes:
    """The log entry with its newest commit changed, and a digest that is right."""
    entry = Entry.from_bytes(json.loads(data)["n"], data)
    return replace(entry, live=(*entry.live[:-1], change(entry.live[-1]))).to_bytes()


def _with_a_digit_changed(random: Random) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        at = random.choice([i for i, byte in enumerate(data) if chr(byte).isdigit()])
        return data[:at] + bytes([(data[at] - 47) % 10 + 48]) + data[at + 1 :]

    return edit


@contextmanager
def _all_flipped(attic: Attic, random: Random) -> Iterator[None]:
    with ExitStack() as stack:
        for commit in (attic.before, attic.newest):
            stack.enter_context(flip(random.choice(attic.shards(commit)), random))
        yield


@contextmanager
def _overwritten(path: Path, start: int, data: bytes) -> Iterator[None]:
    before = _read(path, start, len(data))
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, start)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), before, start)


@contextmanager
def _resized(path: Path, size: int) -> Iterator[None]:
    whole = path.stat().st_size
    tail = _read(path, size, max(0, whole - size))
    os.truncate(path, size)
    try:
        yield
    finally:
        os.truncate(path, whole)
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), tail, size)


@contextmanager
def _replaced(path: Path, other: Path | None) -> Iterator[None]:
    """Another file, or none, under the path's name."""
    aside = path.with_name(f".{path.name}")  # the store takes no notice of such names
    os.rename(path, aside)
    if other is not None:
        os.link(other, path)
    try:
        yield
    finally:
        os.replace(aside, path)


@contextmanager
def _swapped(one: Path, other: Path) -> Iterator[None]:
    _swap(one, other)
    try:
        yield
    finally:
        _swap(one, other)


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name(f".{one.name}")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


@contextmanager
def _edited(path: Path, edit: Callable[[bytes], bytes]) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(edit(before))
    try:
        yield
    finally:
        path.write_bytes(before)


def _empty(attic: Attic) -> Path:
    path = attic.root.parent / "empty"
    path.touch()
    return path


def _read(path: Path, start: int, length: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, start)
