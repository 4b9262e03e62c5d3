"""The disk of a run: whether it can be written, and what was written on its medium."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

FULL_BYTES = 2**20
_PROBE_BYTES = 4096
_TROUBLES = {errno.ENOSPC: "is full", errno.EDQUOT: "is over quota", errno.EROFS: "is read-only"}


def disk_trouble(folder: Path) -> str | None:
    """What is wrong with the disk of the folder, such as "is full"; None when it can be written."""
    try:
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < FULL_BYTES:
            return "is full"
        _write_a_little(folder)
    except OSError as error:
        return _TROUBLES.get(error.errno or 0, f"cannot be written ({error.strerror})")
    return None


def synchronize(folder: Path) -> None:
    """Return when all that was written to the file system of the folder is on its medium.

    One call for all: synchronizing the files of a code snapshot one by one takes ten times as long.
    """
    import ctypes

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def _write_a_little(folder: Path) -> None:
    """Only a write tells of a quota, or of a file system that has turned itself read-only after an error."""
    path = folder / f".probe-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(_PROBE_BYTES))
    finally:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)
