"""Ways to save the state of a training process: ours, those of others, and the floors under them."""

from __future__ import annotations

import importlib
import math
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import note
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.checkpoint import state_dict_saver as dcp
from trained import Toy

from checkpoints.arena import Arena
from checkpoints.channel import Channel
from checkpoints.log import Claim, CommitLog
from checkpoints.manifest import PAGE_BYTES
from checkpoints.owner import this_process
from checkpoints.posix_store import PosixStore
from checkpoints.saver import Saver
from checkpoints.store import Store, open_store
from checkpoints.writer import PART_BYTES

NO_DIGESTS = Path(__file__).resolve().parent / "no_digests"

Ended = Callable[[], float | None]  # when the bytes were on disk, by time.perf_counter; None until then, nan for never
Save = Callable[[Path, int], Ended]  # save the state of a step in a new folder; returns when training may go on


def memcpy(toy: Toy, _: Path) -> Save:
    buffers = [torch.zeros_like(tensor) for tensor in toy.share]

    def save(_folder: Path, _step: int) -> Ended:
        for buffer, tensor in zip(buffers, toy.share, strict=True):
            buffer.copy_(tensor)
        return lambda: math.nan

    return save


def direct(toy: Toy, root: Path) -> Save:
    """The same bytes per rank as ours, written past the cache from ordinary memory; no digest, no commit."""
    size = _whole_pages(toy)
    return _direct(toy, memoryview(mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)), root / "direct")


def direct_from_arena(toy: Toy, root: Path) -> Save:
    """The same from an arena like ours, which has huge pages where the kernel gives them."""
    return _direct(toy, Arena(_whole_pages(toy)).memory, root / "direct-from-arena")


def _whole_pages(toy: Toy) -> int:
    return -(-sum(tensor.nbytes for tensor in toy.share) // PAGE_BYTES) * PAGE_BYTES


def _direct(toy: Toy, data: memoryview, root: Path) -> Save:
    """A thread writes, while training goes on."""
    sizes = [tensor.nbytes for tensor in toy.share]
    cuts = torch.frombuffer(data, dtype=torch.uint8)[: sum(sizes)].split(sizes)
    views = [cut.view(tensor.dtype).view(tensor.shape) for cut, tensor in zip(cuts, toy.share, strict=True)]
    store = PosixStore(root)

    def save(_folder: Path, step: int) -> Ended:
        torch._foreach_copy_(views, toy.share)
        times: list[float] = []

        def write() -> None:
            key = f"data/{step}-{dist.get_rank()}/bytes"
            store.put(key, (data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)))
            times.append(time.perf_counter())
            store.delete(key)

        threading.Thread(target=write).start()
        return lambda: times[0] if times else None

    return save


def ours(toy: Toy, root: Path) -> Save:
    return _ours(toy, PosixStore(root / "ours"))


def ours_in(bucket: str, toy: Toy) -> Save:
    """The same in a bucket, or wherever the URL says; each size and run has a prefix of its own."""
    return _ours(toy, open_store(f"{bucket}/{os.environ['BENCH_PORT']}"))


def ours_without_digests(toy: Toy, root: Path) -> Save:
    """With a stand-in for the digests of blocks in the writer process, to see what they cost."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_DIGESTS), before]))
    try:
        return _ours(toy, PosixStore(root / "ours-without-digests"))
    finally:
        os.environ["PYTHONPATH"] = before


def _ours(toy: Toy, store: Store) -> Save:
    saver, _ = open_saver(store)
    memory, started = memory_bytes(), time.perf_counter()
    saver.prepare(toy.state)
    if dist.get_rank() == 0:
        grown = (memory_bytes() - memory) / 1e6
        note(
            f"ours: to prepare, once per start of a rank, took {time.perf_counter() - started:.3f} s and {grown:.0f} MB"
        )

    def save(_folder: Path, step: int) -> Ended:
        started = time.perf_counter()
        saver.save(step, toy.state, {"step": step})

        def ended() -> float | None:
            results = saver.poll()
            if not results:
                return None
            if results[0].commit is None:
                raise RuntimeError(str(results[0].abort))
            return started + results[0].seconds

        return ended

    return save


def open_saver(store: Store) -> tuple[Saver, Claim | None]:
    """A saver into the store, and the claim that rank 0 has there."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    claim = CommitLog(store).claim(this_process("bench")) if rank == 0 else None
    saver = Saver(store=store, channel=open_channel(store.url), claim=claim, rank=rank, world_size=ranks, keep=1)
    return saver, claim


def memory_bytes() -> int:
    """Of this process and its children; what several of them share counts once in all (Pss of proc(5))."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in ["self", *children]:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += 1024 * int(line.split()[1]) if line.startswith("Pss:") else 0
    return total


def dcp_save(toy: Toy, _: Path) -> Save:
    group = dist.new_group()

    def save(folder: Path, _step: int) -> Ended:
        dcp.save(toy.plain_state, checkpoint_id=folder, process_group=group)
        return _now(lambda: None)

    return save


def dcp_thread(toy: Toy, _: Path) -> Save:
    group = dist.new_group()  # of its own, as training goes on in the default one
    return lambda folder, _step: _ended_with(dcp.async_save(toy.plain_state, checkpoint_id=folder, process_group=group))


def dcp_process(toy: Toy, _: Path) -> Save:
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    )
    stager, group = DefaultStager(options), dist.new_group()
    kind = dcp.AsyncCheckpointerType.PROCESS

    def save(folder: Path, _step: int) -> Ended:
        where: dict[str, Any] = {"checkpoint_id": folder, "process_group": group}
        answer = dcp.async_save(toy.plain_state, **where, async_checkpointer_type=kind, async_stager=stager)
        return _ended_with(answer)

    return save


def torch_save(toy: Toy, _: Path) -> Save:
    def save(folder: Path, _step: int) -> Ended:
        torch.save(toy.plain_state, folder / "state.pt")
        return _now(lambda: _sync(folder))

    return save


def hf_trainer(toy: Toy, root: Path) -> Save:
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy.model

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.inner(x)}

    schedule = torch.optim.lr_scheduler.LambdaLR(toy.optimizer, lambda _: 1.0)
    arguments = TrainingArguments(output_dir=str(root / "trainer"), use_cpu=True, report_to=[])
    trainer: Any = Trainer(model=Model(), args=arguments, optimizers=(toy.optimizer, schedule))

    def save(folder: Path, step: int) -> Ended:
        trainer.args.output_dir, trainer.state.global_step = str(folder), step
        trainer._save_checkpoint(trainer.model, trial=None)
        return _now(lambda: _sync(folder))

    return save


def lightning_trainer(toy: Toy, _: Path) -> Save:
    lightning: Any = importlib.import_module("lightning")
    environments: Any = importlib.import_module("lightning.pytorch.plugins.environments")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = toy.model

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            loss: torch.Tensor = self.inner(batch[0])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-6)

    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[environments.LightningEnvironment()],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(toy.batch)))

    def save(folder: Path, _step: int) -> Ended:
        trainer.save_checkpoint(folder / "state.ckpt")
        return _now(lambda: _sync(folder))

    return save


METHODS: Mapping[str, Callable[[Toy, Path], Save]] = {
    "memcpy": memcpy,
    "direct I/O": direct,
    "direct I/O from the arena": direct_from_arena,
    "ours": ours,
    "ours without digests": ours_without_digests,
    "dcp.async_save, process + shared memory": dcp_process,
    "dcp.async_save, thread": dcp_thread,
    "dcp.save": dcp_save,
    "torch.save": torch_save,
    "HF Trainer": hf_trainer,
    "Lightning": lightning_trainer,
}
FOR_SEVERAL_RANKS = (
    "memcpy", "direct I/O", "direct I/O from the arena", "ours", "ours without digests",
    "dcp.async_save, process + shared memory", "dcp.async_save, thread", "dcp.save",
)  # fmt: skip


def _now(finish: Callable[[], None]) -> Ended:
    def ended() -> float:
        finish()
        return time.perf_counter()

    return ended


def _ended_with(answer: Any) -> Ended:
    """Of a DCP future, or of its answer with one future for the staging and one for the upload."""
    if hasattr(answer, "upload_completion"):
        answer.staging_completion.result()  # until then training must not change the state
        answer = answer.upload_completion
    times: list[float] = []
    answer.add_done_callback(lambda _: times.append(time.perf_counter()))

    def ended() -> float | None:
        if not times:
            return None
        answer.result()
        return times[0]

    return ended


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def open_channel(name: str) -> Channel:
    port, is_master = int(os.environ["BENCH_PORT"]), dist.get_rank() == 0
    return Channel(TCPStore("127.0.0.1", port, is_master=is_master, wait_for_workers=False, multi_tenant=True), name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(ranks: int, threads: int, environment: Mapping[str, str]) -> int:
    """Start a process per rank, with the same words; returns the exit code of the first that failed."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "BENCH_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    # Threads that spin while they wait would take the cores from the processes that write; `launch` sets this, too.
    common |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, **common, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    try:
        return next((code for process in processes if (code := process.wait()) != 0), 0)
    finally:
        for process in processes:
            process.kill()
