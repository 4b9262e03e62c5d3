"""What ended a rank, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launcher.train.failures import describe


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/nowhere/weights.bin"),
            "missing",
            "missing file: /nowhere/",
        ),
        (MemoryError(), "memory", "out of memory; use a smaller batch.micro"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "memory", "out of GPU memory: CUDA out of memory; use a"),
        (OSError(28, "No space left on device", "/disk/file"), "storage", "disk full: /disk/file; free some space"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection reset by peer"), "peer", "lost the other ranks: "),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "worker", "a data worker died: "),
        (KeyError("steps"), "error", "KeyError: 'steps'"),
    ],
)
def test_an_exception_is_told_in_the_words_of_its_kind(tmp_path: Path, error, kind, cause):
    failure = describe(error, 1, tmp_path / "rank-1.log")
    assert (failure.rank, failure.kind) == (1, kind)
    assert failure.cause.startswith(cause)
    assert "\n" not in failure.cause
