"""What ended a rank, in one line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from checkpoints.log import CommitLog
from checkpoints.owner import this_process
from checkpoints.store import open_store
from cluster.preemption import Notice
from launcher.runs import Run
from launcher.status import commit_count
from launcher.train.__main__ import _Judge
from launcher.train.failures import Failure, describe


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


def test_a_dead_data_worker_is_the_cause_though_the_code_that_it_cut_short_failed_too(tmp_path: Path):
    def cut_short() -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        except RuntimeError:
            del {}["a thread that was to start"]

    with pytest.raises(KeyError) as raised:
        cut_short()
    failure = describe(raised.value, 0, tmp_path / "rank-0.log")
    assert (failure.kind, failure.is_retryable) == ("worker", True)
    assert failure.cause.startswith("a data worker died: DataLoader worker (pid 7) is killed")


def test_on_one_machine_a_commit_on_its_disk_is_progress_and_none_is_not(tmp_path: Path):
    run = Run(tmp_path)
    claim = CommitLog(open_store(run.checkpoints)).claim(this_process("run/1"))
    claim.commit(step=1, folder="data/1-1-ab", manifest_digest="d", size=1)
    judge = _Judge(run, run.new_attempt({}), Notice(tmp_path / "notice"))
    killed = [{"failure": asdict(Failure(rank=0, host="vm", kind="killed", cause="killed", time=0.0)), "notice": None}]
    assert judge.verdict(0, killed)["fruitless"] == 1
    claim.commit(step=2, folder="data/1-2-ab", manifest_digest="d", size=1, is_stored=False, hosts=("vm",))
    assert judge.verdict(1, killed)["fruitless"] == 0
    assert commit_count(run) == 1  # what counts on another machine
