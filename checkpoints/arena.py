"""The memory that a save is copied into: shared with the writer process, and made once."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress

_HUGE_PAGE_BYTES = 2 * 2**20  # on x86-64, and on arm64 with pages of 4 KiB
_MADV_COLLAPSE = 25  # madvise(2), since Linux 6.1


class Arena:
    """Anonymous shared memory, all of whose pages exist, so that the first save is as fast as the next.

    They are huge pages where the kernel has some: to write past the cache from small ones takes five times the
    processor time. It is no file in /dev/shm, whose size may be small. Raises OSError when the machine has no memory
    for it.
    """

    def __init__(self, size: int) -> None:
        self.file = open(os.memfd_create("checkpoint"), "r+b", buffering=0)  # noqa: SIM115  open for as long as a writer may have to be started
        file = self.file.fileno()
        os.truncate(file, size + 2 * _HUGE_PAGE_BYTES)  # none of what lies behind `size` is ever made
        mapped = _map_aligned(file, size)
        # Up to the first that is refused: each further search for free memory in one piece would take 10 ms.
        with suppress(OSError):
            for start in range(0, size - size % _HUGE_PAGE_BYTES, _HUGE_PAGE_BYTES):
                os.posix_fallocate(file, start, 1)  # a range without any page is not collapsed
                mapped.madvise(_MADV_COLLAPSE, start, _HUGE_PAGE_BYTES)
        os.posix_fallocate(file, 0, size)
        mapped[: size : mmap.PAGESIZE] = bytes(-(-size // mmap.PAGESIZE))  # maps each
        self.memory = memoryview(mapped)[:size]

    def close(self) -> None:
        """Let the memory go, as soon as nobody looks at it any more."""
        self.file.close()


def _map_aligned(file: int, size: int) -> mmap.mmap:
    """Map at least `size` bytes, where possible from an address on that huge pages can have.

    Linux puts maps below one another, so the address that one gets tells by how much the next has to be longer.
    """
    whole = -(-size // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    with mmap.mmap(file, whole) as probe:
        above = ctypes.addressof(ctypes.c_char.from_buffer(probe)) % _HUGE_PAGE_BYTES
    return mmap.mmap(file, whole + above)
