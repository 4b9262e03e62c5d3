"""A store in a folder of a file system: a local disk, NFS, or anything else with hard links."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from checkpoints.errors import KeyMissing, NotAFile, StoreError, StoreFull, StoreUnwritable
from checkpoints.store import Created, check_key

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _ROOT | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO put in a file's place must not block us
_UNDECIDED = (errno.EIO, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_KINDS = (errno.ELOOP, errno.EISDIR)


class PosixStore:
    """Keys are files below `root`, which need not exist yet. No symbolic link below it is followed."""

    crosses_processes = True

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root
        self._synchronized: set[Path] = set()  # folders that are known to be there after the machine has failed

    def create(self, key: str, data: bytes) -> Created:
        with self._folder("create", key, is_made=True) as (folder, name):
            outcome = _publish(folder, name, data)
            try:
                os.fsync(folder)
            except OSError:
                return Created.UNKNOWN
            return outcome

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        with self._folder("put", key, is_made=True) as (folder, name), _opened(name, _NEW_FILE, folder) as file:
            _bypass_cache(file, True)
            try:
                for block in blocks:
                    _write(file, block)
                os.fsync(file)
                os.fsync(folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._folder("get", key) as (folder, name), _opened(name, _FILE, folder) as file:
            size = _size(file)
            end = size if length is None else min(size, start + length)  # pread allocates what it is asked for
            parts = []
            while start < end and (part := os.pread(file, end - start, start)):
                parts.append(part)
                start += len(part)
            return b"".join(parts)

    def read_back(self, key: str, part_bytes: int) -> Iterator[memoryview]:
        with self._folder("read back", key) as (folder, name), _opened(name, _FILE, folder) as file:
            _size(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            _bypass_cache(file, True)
            part = memoryview(_buffer(part_bytes))
            start = 0
            while filled := _read_into(file, part, start):
                yield part[:filled]
                start += filled

    def list(self, prefix: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        try:
            with self._folder("list", f"{prefix}name") as (folder, _):
                _add_sizes(folder, prefix, sizes)
        except KeyMissing:
            return {}
        return sizes

    def delete(self, key: str) -> None:
        with suppress(KeyMissing), self._folder("delete", key) as (folder, name):
            os.unlink(name, dir_fd=folder)
        parent = key.rpartition("/")[0]
        if "/" in parent:  # the folder of one save; the top folders stay, because others create in them
            with suppress(KeyMissing), self._folder("delete", parent) as (folder, name), suppress(OSError):
                os.rmdir(name, dir_fd=folder)

    @contextmanager
    def _folder(self, operation: str, key: str, *, is_made: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder of a key, and the key's name in it. Foreign errors inside become StoreErrors."""
        *folders, name = check_key(key).split("/")
        with _translated(operation, key), ExitStack() as opened:
            if is_made:
                self._make_root()
            path, folder = self._root, opened.enter_context(_opened(self._root, _ROOT))
            for part in folders:
                path /= part
                if is_made:
                    self._make(path, folder)
                folder = opened.enter_context(_opened(part, _FOLDER, folder))
            yield folder, name

    def _make_root(self) -> None:
        folders = (self._root, *self._root.parents)
        missing = [folder for folder in folders if not folder.exists()]
        for folder in reversed(missing):
            with _opened(folder.parent, _ROOT) as parent:
                self._make(folder, parent)
        for folder in {*folders[:2]} - self._synchronized:
            with suppress(PermissionError), _opened(folder.parent, _ROOT) as parent:  # not ours, then, to make or lose
                os.fsync(parent)
            self._synchronized.add(folder)

    def _make(self, folder: Path, parent: int) -> None:
        """Make a folder that stays. One that is there may be lost yet: who made it may have died before its fsync."""
        try:
            os.mkdir(folder.name, dir_fd=parent)
        except FileExistsError:
            if folder in self._synchronized:
                return
        os.fsync(parent)
        self._synchronized.add(folder)


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise KeyMissing(operation, key) from error
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(operation, key, "the disk or the quota is full; free some space") from error
        if error.errno == errno.EROFS:
            raise StoreUnwritable(operation, key, "the file system is read-only; make it writable again") from error
        kind = NotAFile if error.errno in _OTHER_KINDS else StoreError
        raise kind(operation, key, error.strerror or str(error)) from error


@contextmanager
def _opened(path: str | Path, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666, dir_fd=folder)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # what was written has been synchronized by now: a late error would only hide that
            os.close(descriptor)


def _publish(folder: int, name: str, data: bytes) -> Created:
    """Make a complete file appear under a name that must be free."""
    temporary = f".{name}.{uuid.uuid4().hex}"
    with _opened(temporary, _NEW_FILE, folder) as file:
        try:
            _write(file, memoryview(data))
            os.fsync(file)
            return _link(temporary, name, folder, file)
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)


def _link(temporary: str, name: str, folder: int, file: int) -> Created:
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        # When NFS loses the reply, the repeated call fails; the second name of our file tells that the first worked.
        if os.fstat(file).st_nlink == 2:
            return Created.OK
        if isinstance(error, FileExistsError):
            return Created.EXISTS
        if error.errno in _UNDECIDED:
            return Created.UNKNOWN
        raise
    return Created.OK


def _write(file: int, data: memoryview) -> None:
    rest = data.cast("B")
    while rest:
        try:
            rest = rest[os.write(file, rest) :]
        except OSError as error:
            # Past the cache only whole pages can be written: the unaligned rest goes through it.
            if error.errno != errno.EINVAL or not _bypass_cache(file, False):
                raise


def _buffer(size: int) -> mmap.mmap:
    """Page-aligned, as reads past the cache must be, and of huge pages, each of which is pinned for it."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _read_into(file: int, part: memoryview, start: int) -> int:
    """Fill the part from byte `start`; returns less than its length only where the file ends."""
    filled = 0
    while filled < len(part):
        try:
            count = os.preadv(file, [part[filled:]], start + filled)
        except OSError as error:
            if error.errno != errno.EINVAL or not _bypass_cache(file, False):
                raise
            continue
        if count == 0:
            break
        filled += count
    return filled


def _bypass_cache(file: int, is_wanted: bool) -> bool:
    """Switch O_DIRECT on or off; returns whether it was on. Where the file system has none, nothing happens."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    # Not at open(): where it is not supported, that fails and leaves an empty file behind.
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT if is_wanted else flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


def _size(file: int) -> int:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR, "not a regular file")
    return status.st_size


def _add_sizes(folder: int, prefix: str, sizes: dict[str, int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # a temporary that lost its process
                continue
            if entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError), _opened(entry.name, _FOLDER, folder) as inner:
                    _add_sizes(inner, f"{prefix}{entry.name}/", sizes)
            else:  # what is no file has its place, too
                with suppress(FileNotFoundError):
                    sizes[prefix + entry.name] = entry.stat(follow_symlinks=False).st_size
