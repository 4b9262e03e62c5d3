"""Real processes with a real process group, and tensors sharded in every way, at two world sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from support import rank_program
from support.saving import SECONDS, claim, live
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.memory_store import MemoryStore
from checkpoints.posix_store import PosixStore
from checkpoints.reader import digests, open_commit, verify
from checkpoints.restorer import load
from checkpoints.saver import Saver
from checkpoints.store import Store

TESTS = Path(__file__).parents[1]


def save_alone(store: Store, step: int) -> None:
    saver = Saver(store=store, channel=Channel(HashStore(), "a"), claim=claim(store), rank=0, world_size=1, keep=2)
    saver.prepare(rank_program.whole_state(0))
    saver.save(step, rank_program.whole_state(step), {"samples": step})
    (result,) = saver.wait(SECONDS)
    assert result.commit is not None
    saver.close(SECONDS)


def run_ranks(folder: Path, url: str, restored_step: int, saved_step: int) -> None:
    program = [sys.executable, str(TESTS / "support" / "rank_program.py")]
    steps = [str(restored_step), str(saved_step)]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*program, str(rank), "2", str(folder), url, *steps], env=environment) for rank in range(2)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_one_rank_s_checkpoint_goes_on_as_two_sharded_ones_and_back_again(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store = PosixStore(tmp_path / "store")
    save_alone(store, 10)
    run_ranks(tmp_path, url, restored_step=10, saved_step=20)
    commit = live(store)[-1]
    verify(store, commit)

    manifest = open_commit(store, commit).manifest
    chunks = {tensor.name: len(tensor.chunks) for tensor in manifest.tensors}
    assert chunks == {
        "model.rows": 2,
        "model.columns": 2,
        "model.replicated": 1,
        "optimizer.flat": 5,
        "optimizer.on_one_rank": 1,
    }
    assert manifest.world_size == 2

    state = rank_program.whole_state(0)
    assert load(store, commit, state) == {"samples": 20}
    for name, expected in rank_program.whole_state(20).items():
        assert torch.equal(state[name], expected), name

    other = MemoryStore()
    save_alone(other, 20)
    assert digests(store, commit) == digests(other, live(other)[-1])
