"""Digests that identify data and models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import blake3


def digest_files(paths: Iterable[Path]) -> str:
    """One digest for the names and contents of `paths`, in the given order."""
    hasher = blake3.blake3()
    for path in paths:
        hasher.update(f"{path.name}\0".encode())
        hasher.update(blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(path).digest())
    return hasher.hexdigest()


def sample_digest(step: int, ids: Sequence[str | int]) -> int:
    """A number for "these samples were consumed at this step"; the numbers of all ranks and steps add up modulo 2^63.

    Addition makes the total independent of how a batch was spread over ranks, so that two runs that consumed the same
    samples at the same steps, at any world size, have the same total (a multiset hash, Bellare & Micciancio 1997).
    """
    total = 0
    for sample in ids:
        total += int.from_bytes(blake3.blake3(f"{step}:{sample}".encode()).digest(length=8), "big")
    return total % 2**63
