"""The memory that a save is copied into."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.arena import Arena

HUGE = 2 * 2**20
SIZE = 16 * HUGE + 3 * 4096
THP = Path("/sys/kernel/mm/transparent_hugepage")
NO_HUGE_PAGES = """
import ctypes

PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
"""
SHOW = f"""
import os

from checkpoints.arena import Arena

arena = Arena({SIZE})
arena.memory[:] = bytes([7]) * {SIZE}
lines = open("/proc/self/smaps").read().split("/memfd:checkpoint")[1].splitlines()
sizes = {{line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:20]}}
print(sizes["ShmemPmdMapped"], len(arena.memory), os.pread(arena.file.fileno(), {SIZE}, 0) == bytes(arena.memory))
"""


def show(program: str) -> list[str]:
    """What a process of its own says of its arena: bytes in huge pages, its size, whether the file has the same."""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return answer.stdout.split()


def kernel_gives_huge_pages() -> bool:
    release = tuple(int(number) for number in os.uname().release.split(".")[:2])
    if release < (6, 1) or not THP.exists() or "[deny]" in (THP / "shmem_enabled").read_text():
        return False
    return int((THP / "hpage_pmd_size").read_text()) == HUGE


def test_it_is_of_huge_pages() -> None:
    if not kernel_gives_huge_pages():
        pytest.skip("this kernel gives no huge pages of 2 MiB on request (Linux 6.1)")
    huge, size, is_shared = show(SHOW)
    assert int(huge) >= SIZE // 2  # all 16, unless the machine's memory is in pieces
    assert (int(size), is_shared) == (SIZE, "True")


def test_it_is_as_large_where_there_are_no_huge_pages() -> None:
    assert show(NO_HUGE_PAGES + SHOW) == ["0", str(SIZE), "True"]


@pytest.mark.parametrize("size", [4096, HUGE, SIZE])
def test_all_of_its_pages_exist(size: int) -> None:
    arena = Arena(size)
    try:
        assert os.fstat(arena.file.fileno()).st_blocks * 512 == size
    finally:
        arena.close()
