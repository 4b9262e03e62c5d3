"""The memory that a save is copied into: shared with the writer process, and made once."""

from __future__ import annotations

import mmap
import os


class Arena:
    """Anonymous shared memory, all of whose pages exist, so that the first save is as fast as the next.

    It is no file in /dev/shm, whose size may be small. Raises OSError when the machine has no memory for it.
    """

    def __init__(self, size: int) -> None:
        self.file = open(os.memfd_create("checkpoint"), "r+b", buffering=0)  # noqa: SIM115  open for as long as a writer may have to be started
        os.posix_fallocate(self.file.fileno(), 0, size)
        self.memory = mmap.mmap(self.file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)

    def close(self) -> None:
        """Let the memory go, as soon as nobody looks at it any more."""
        self.file.close()
