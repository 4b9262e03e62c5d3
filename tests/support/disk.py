"""What a file system may have kept when the power failed: only what was synchronized is sure.

`Disk` records what the folder store asks of the operating system, and tells at each moment what the worst legal disk
looks like: contents that no fsync of the file covers, and names that no fsync of their folder covers, are lost.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Loss(Enum):
    """What becomes of that which was not synchronized."""

    ALL = "nothing of it happened"
    CREATIONS = "files and names are lost, and deletions have happened"
    TORN = "names are there, with half of the contents"
    ZEROS = "names and sizes are there, and the contents are zeros"


@dataclass
class File:
    content: bytes = b""
    durable: bytes = b""

    def after(self, loss: Loss) -> bytes:
        rest = self.content[len(self.durable) :]
        if loss is Loss.TORN:
            return self.durable + rest[: len(rest) // 2]
        return self.durable + bytes(len(rest)) if loss is Loss.ZEROS else self.durable

    def fsync(self) -> None:
        self.durable = self.content


@dataclass
class Folder:
    entries: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)

    def after(self, loss: Loss) -> dict[str, File | Folder]:
        if loss is Loss.ALL:
            return self.durable
        if loss is Loss.CREATIONS:
            return {name: node for name, node in self.durable.items() if self.entries.get(name) is node}
        return self.entries

    def fsync(self) -> None:
        self.durable = dict(self.entries)


class Disk:
    """Stands in for `os` in the folder store below `base`, where `tree` lies. Calls `before` before each change."""

    def __init__(self, base: Path, tree: Folder, before: Callable[[], None] = lambda: None) -> None:
        self.tree = tree
        self._base = base
        self._before = before
        self._open: dict[int, File | Folder] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        with patch("checkpoints.posix_store.os", self):
            yield

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            self._before()
        descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT:
            self._folder(dir_fd).entries[str(path)] = File()
        if (node := self._node(path, dir_fd)) is not None:
            self._open[descriptor] = node
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._before()
        count = os.write(descriptor, data)
        node = self._open[descriptor]
        assert isinstance(node, File)
        node.content += data[:count]
        return count

    def fsync(self, descriptor: int) -> None:
        self._before()
        if descriptor in self._open:
            self._open[descriptor].fsync()

    def link(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        self._before()
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        self._folder(dst_dir_fd).entries[target] = self._folder(src_dir_fd).entries[source]

    def unlink(self, name: str, *, dir_fd: int) -> None:
        self._before()
        os.unlink(name, dir_fd=dir_fd)
        del self._folder(dir_fd).entries[name]

    def mkdir(self, name: str, *, dir_fd: int) -> None:
        self._before()
        os.mkdir(name, dir_fd=dir_fd)
        self._folder(dir_fd).entries[name] = Folder()

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        self._before()
        os.rmdir(name, dir_fd=dir_fd)
        del self._folder(dir_fd).entries[name]

    def _folder(self, descriptor: int | None) -> Folder:
        assert descriptor is not None
        node = self._open[descriptor]
        assert isinstance(node, Folder)
        return node

    def _node(self, path: str | Path, dir_fd: int | None) -> File | Folder | None:
        """None for what lies outside of the base."""
        if dir_fd is not None:
            return self._folder(dir_fd).entries[str(path)]
        if not Path(path).is_relative_to(self._base):
            return None
        node: File | Folder = self.tree
        for part in Path(path).relative_to(self._base).parts:
            assert isinstance(node, Folder)
            node = node.entries[part]
        return node


def materialise(tree: Folder, base: Path, loss: Loss | None) -> None:
    """Write what the disk holds after that loss; without one, what a process sees that runs on."""
    base.mkdir(parents=True)
    for name, node in (tree.entries if loss is None else tree.after(loss)).items():
        if isinstance(node, Folder):
            materialise(node, base / name, loss)
        else:
            (base / name).write_bytes(node.content if loss is None else node.after(loss))


def fingerprint(tree: Folder, loss: Loss) -> object:
    """Equal for losses that leave the same."""
    return tuple(
        (name, fingerprint(node, loss) if isinstance(node, Folder) else node.after(loss))
        for name, node in sorted(tree.after(loss).items())
    )


def copied(tree: Folder) -> Folder:
    return copy.deepcopy(tree)
