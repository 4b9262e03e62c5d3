"""Train under any strategy at any world size, in real processes, and compare what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from support.runs_for_tests import REPOSITORY
from support.saving import live

from checkpoints.reader import open_commit
from checkpoints.restorer import load
from checkpoints.store import open_store
from launcher.strategies import OFFLOAD, STRATEGIES

PROGRAM = REPOSITORY / "tests/support/strategy_program.py"
SECONDS = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`steps` optimizer steps, from the newest commit of the store `source` on if given; then a save to `target`."""

    name: str
    settings: dict[str, object]
    steps: int
    source: str | None = None
    target: str | None = None
    nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of rank 0. ready_bytes: the most memory until the first step could begin; trained_bytes: and from there on."""

    losses: list[float]
    norms: list[float]
    loss_scale: float | None
    ready_bytes: int
    trained_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A strategy, with or without offload, under the name that tables give it."""

    name: str
    settings: dict[str, object] = field(hash=False)


def spreads() -> list[Spread]:
    """All of them: a strategy that joins the table of the launcher is here too."""
    found = []
    for name, strategy in STRATEGIES.items():
        settings: dict[str, object] = {"parallel.strategy": name}
        found.append(Spread(name=name, settings=settings))
        if strategy.refusal({OFFLOAD}) is None:
            found.append(Spread(name=f"{name}+offload", settings={**settings, "parallel.cpu_offload": "true"}))
    return found


def run_phases(folder: Path, phases: list[tuple[int, list[Job]]]) -> dict[str, Result]:
    """What each job came to. A phase is a number of ranks, and jobs that these do one after the other."""
    folder.mkdir(parents=True)
    (folder / "phases.json").write_text(json.dumps([(world, [asdict(job) for job in jobs]) for world, jobs in phases]))
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["DS_ACCELERATOR"] = "cpu"
    processes = max(world for world, _ in phases)
    ranks = []
    for rank in range(processes):
        with open(folder / f"rank-{rank}.log", "wb") as log:
            words = [sys.executable, str(PROGRAM), str(rank), str(processes), str(folder)]
            ranks.append(subprocess.Popen(words, env=environment | {"LOCAL_RANK": str(rank)}, stdout=log, stderr=log))
    try:
        for number, rank in enumerate(ranks):
            assert rank.wait(SECONDS) == 0, (folder / f"rank-{number}.log").read_text()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return {name: Result(**result) for name, result in results.items()}


def whole_state(url: str) -> dict[str, torch.Tensor]:
    """Every tensor of the newest commit, as one rank alone holds it."""
    store = open_store(url)
    commit = live(store)[-1]
    tensors = open_commit(store, commit).manifest.tensors
    state = {tensor.name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)) for tensor in tensors}
    load(store, commit, state)
    return state


def unequal_tensors(one: str, other: str) -> list[str]:
    """The names of the tensors in which the newest commits of two stores differ in any bit."""
    first, second = whole_state(one), whole_state(other)
    return [n for n in {**first, **second} if n not in first or n not in second or not torch.equal(first[n], second[n])]


def largest_deviation(losses: list[float], reference: list[float]) -> float:
    """Relative, over the steps that both have."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))
