"""A rank that does one job after the other: restore a checkpoint, train and save; each under a strategy.

python strategy_program.py RANK PROCESSES FOLDER: reads FOLDER/phases.json; rank 0 writes FOLDER/results.json.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from checkpoints.channel import Channel
from checkpoints.log import CommitLog
from checkpoints.owner import this_process
from checkpoints.restorer import restore
from checkpoints.saver import Saver
from checkpoints.store import open_store
from cluster.topology import Topology
from launcher import AdamW, Batch, Data, Lora, Model, Recipe, Schedule
from launcher.overrides import apply
from launcher.plan import make_plan
from launcher.strategies import STRATEGIES
from launcher.train.data import load_examples, micro_batches
from launcher.train.engines import Engine, make_engine, weights_of
from launcher.train.models import load_model
from launcher.train.optim import learning_rate
from launcher.train.session import seed_step

SECONDS = 60.0
PATIENCE = timedelta(seconds=600)
RECIPE = Recipe(
    model=Model(build=f"{Path(__file__).with_name('odd_gpt.py')}:odd_gpt", arguments={"width": 32, "layers": 2}),
    data=Data(path=str(Path(__file__).parents[2] / "recipes/data/python_reference.txt"), sequence_length=32),
    steps=60,
    batch=Batch(size=12, micro=2),
    optimizer=AdamW(lr=3e-3),
    schedule=Schedule(warmup_steps=5),
    seed=3,
)

QLORA = replace(RECIPE, model=Model(name="none"), adapter=Lora(rank=2), quantize="nf4")


def train(job: dict[str, Any], rank: int, world_size: int, board: dist.Store) -> dict[str, Any]:
    recipe = apply(QLORA if "model.name" in job["settings"] else RECIPE, job["settings"])
    topology = Topology(nodes=job["nodes"], ranks_per_node=world_size // job["nodes"], has_gpus=False)
    plan = make_plan(recipe, topology, cores_per_node=topology.ranks_per_node)
    _forget_peak()
    device, precision = torch.device("cpu"), recipe.precision.replace("auto", "fp32")
    model = load_model(recipe, device, precision, restores=job["source"] is not None)
    engine = make_engine(recipe, plan, model.module, device, precision)
    step = 0
    if job["source"]:
        step = _restore(job, engine, rank, world_size, board)
    elif model.unread is not None:
        model.unread.fill(weights_of(engine.state()))
        engine.state_restored()
    ready_bytes = _peak_bytes()
    examples = load_examples(recipe, "train", None)
    batches = micro_batches(examples, plan, recipe.seed, step * plan.batch_size, rank, 0)
    losses: list[float] = []
    norms: list[float] = []
    saved = step + job["saves_after"] if job["target"] else None
    if saved == step:
        _save(job, engine, step, rank, world_size, board)
    for number in range(step + 1, step + job["steps"] + 1):
        seed_step(recipe.seed, number, rank)
        lr = learning_rate(number, recipe.steps, recipe.optimizer.lr, recipe.schedule)
        result = engine.train_step(next(batches), lr=lr, wants_stop=False)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if saved == number:
            _save(job, engine, number, rank, world_size, board)
    trained_bytes = _peak_bytes()
    scale = None if engine.loss_scale is None else engine.loss_scale.factor
    sizes = {"ready_bytes": ready_bytes, "trained_bytes": trained_bytes}
    return {"losses": losses, "norms": norms, "loss_scale": scale, **sizes}


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """The most memory of this process since the last call, or since the peak was forgotten."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    _forget_peak()
    return int(line.split()[1]) * 1024


def _restore(job: dict[str, Any], engine: Engine, rank: int, world_size: int, board: dist.Store) -> int:
    store = open_store(job["source"])
    restored = restore(
        store=store,
        channel=Channel(board, f"{job['name']}/restore"),
        claim=CommitLog(store).claim(this_process("ranks"), is_takeover=True) if rank == 0 else None,
        rank=rank,
        world_size=world_size,
        state=engine.state(),
        deadline_seconds=SECONDS,
    )
    assert restored is not None
    engine.state_restored()
    return restored.commit.step


def _save(job: dict[str, Any], engine: Engine, step: int, rank: int, world_size: int, board: dist.Store) -> None:
    store = open_store(job["target"])
    saver = Saver(
        store=store,
        channel=Channel(board, f"{job['name']}/save"),
        claim=CommitLog(store).claim(this_process("ranks"), is_takeover=True) if rank == 0 else None,
        rank=rank,
        world_size=world_size,
        keep=1,
        deadline_seconds=SECONDS,
    )
    saver.prepare(engine.state())
    saver.save(step, engine.state(), {})
    (result,) = saver.wait(SECONDS)
    assert result.commit is not None, result.abort
    saver.close(SECONDS)


def main(rank: int, processes: int, folder: Path) -> None:
    """Each phase has processes of its own, forked from one that has the imports done: these take longer than jobs."""
    phases = json.loads((folder / "phases.json").read_text())
    for strategy in {job["settings"].get("parallel.strategy", "ddp") for _, jobs in phases for job in jobs}:
        import_module(STRATEGIES[strategy].module)
    gc.freeze()  # as in a run: DeepSpeed looks for garbage in each job, and in what was imported that takes long
    meeting = dist.FileStore(str(folder / "meeting"), processes)
    patience = PATIENCE * max(len(jobs) for _, jobs in phases)  # some ranks wait for all jobs of a phase
    if rank == 0:
        board = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=patience, wait_for_workers=False)
        meeting.set("port", str(board.port))
    else:
        board = dist.TCPStore("127.0.0.1", int(meeting.get("port")), is_master=False, timeout=patience)
    results: dict[str, Any] = {}
    for number, (world_size, jobs) in enumerate(phases):
        found = folder / f"phase-{number}.json"
        if rank < world_size:
            child = os.fork()
            if child == 0:
                _run_phase(board.port, number, rank, world_size, jobs, found)
            assert os.waitpid(child, 0)[1] == 0
        board.set(f"done/{number}/{rank}", "")
        board.wait([f"done/{number}/{other}" for other in range(processes)])
        results |= json.loads(found.read_text())
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
        board.wait([f"left/{other}" for other in range(1, processes)])  # the board is here: this one leaves last
    else:
        board.set(f"left/{rank}", "")


def _run_phase(port: int, number: int, rank: int, world_size: int, jobs: list[dict[str, Any]], found: Path) -> NoReturn:
    try:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        board = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENCE)
        store = dist.PrefixStore(f"phase-{number}", board)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        results = {job["name"]: train(job, rank, world_size, store) for job in jobs}
        dist.barrier()
        if rank == 0:
            found.write_text(json.dumps(results))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
