"""A rank in a process of its own: restore, check what was restored, save one step.

python rank_program.py RANK WORLD_SIZE FOLDER STORE_URL RESTORED_STEP SAVED_STEP
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from checkpoints.channel import Channel
from checkpoints.flat_shard import FlatShard, State
from checkpoints.log import CommitLog
from checkpoints.owner import this_process
from checkpoints.restorer import restore
from checkpoints.saver import Saver
from checkpoints.store import open_store

SHAPES = {
    "model.rows": (7, 5),
    "model.columns": (6, 4),
    "model.replicated": (9,),
    "optimizer.flat": (5, 3, 2),
    "optimizer.on_one_rank": (30,),
}


def whole_state(step: int) -> dict[str, torch.Tensor]:
    """The state as one rank alone holds it."""
    return {
        name: torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + 1000 * step
        for name, shape in SHAPES.items()
    }


def cut_state(step: int, rank: int, world_size: int) -> State:
    """The same state, as several ranks hold it: sharded in three ways, and replicated."""
    state: dict[str, torch.Tensor | FlatShard] = {**whole_state(step)}
    mesh = init_device_mesh("cpu", (world_size,))
    whole = whole_state(step)
    state["model.rows"] = distribute_tensor(whole["model.rows"], mesh, [Shard(0)])
    state["model.columns"] = distribute_tensor(whole["model.columns"], mesh, [Shard(1)])
    flat = whole["optimizer.flat"].flatten()
    cut = [0, 17, len(flat)]
    state["optimizer.flat"] = FlatShard(
        items=flat[cut[rank] : cut[rank + 1]].clone(), shape=SHAPES["optimizer.flat"], start=cut[rank]
    )
    state["optimizer.on_one_rank"] = FlatShard(items=flat[: 30 * rank].clone(), shape=(30,), start=0)
    return state


def local(value: torch.Tensor | FlatShard) -> torch.Tensor:
    if isinstance(value, FlatShard):
        return value.items
    return value.to_local() if isinstance(value, DTensor) else value


def open_channel(rank: int, world_size: int, folder: Path) -> Channel:
    """The training group, and a store of the checkpoints' own beside it."""
    rendezvous = dist.FileStore(str(folder / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=world_size)
    seconds = timedelta(seconds=60)
    if rank == 0:
        board = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=seconds, wait_for_workers=False)
        rendezvous.set("port", str(board.port))
    else:
        port = int(rendezvous.get("port"))
        board = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=seconds)
    return Channel(board, "attempt")


def main(rank: int, world_size: int, folder: Path, url: str, restored_step: int, saved_step: int) -> None:
    channel = open_channel(rank, world_size, folder)
    store = open_store(url)
    claim = CommitLog(store).claim(this_process("ranks"), is_takeover=True) if rank == 0 else None
    state = cut_state(0, rank, world_size)
    restored = restore(store=store, channel=channel, claim=claim, rank=rank, world_size=world_size, state=state)
    assert restored is not None
    assert restored.commit.step == restored_step
    for name, expected in cut_state(restored_step, rank, world_size).items():
        assert torch.equal(local(state[name]), local(expected)), name

    saver = Saver(store=store, channel=channel, claim=claim, rank=rank, world_size=world_size, keep=2)
    saver.prepare(state)
    saver.save(saved_step, cut_state(saved_step, rank, world_size), {"samples": saved_step})
    (result,) = saver.wait(60)
    assert result.commit is not None, result.abort
    saver.close(60)
    dist.barrier()  # rank 0 holds the board until all have heard the verdict
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
