"""Train under any strategy at any world size, in real processes, and compare what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
SECONDS, SECONDS_PER_JOB = 600, 20  # until ranks count as stuck, on a machine that is busy
CUT = 5  # steps before the save
REST = 5  # steps after the restore
TOLERANCE = 1e-5  # of losses in fp32, relative

Settings = dict[str, object]
Ranks = tuple[str, int]  # a name of SPREADS, and a world size


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`steps` optimizer steps, from the newest commit of the store `source` on if given.

    After `saves_after` of them it saves to `target`, if given.
    """

    name: str
    settings: dict[str, object]
    steps: int
    source: str | None = None
    target: str | None = None
    saves_after: int = 0
    nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of rank 0. ready_bytes: the most memory until the first step could begin; trained_bytes: and from there on."""

    losses: list[float]
    norms: list[float]
    loss_scale: float | None
    ready_bytes: int
    trained_bytes: int


def _spreads() -> Iterator[tuple[str, Settings]]:
    for name, strategy in STRATEGIES.items():
        settings: Settings = {"parallel.strategy": name}
        yield name, settings
        if strategy.refusal({OFFLOAD}) is None:
            yield f"{name}+offload", {**settings, "parallel.cpu_offload": "true"}


# Each strategy of the launcher, with and without offload.
SPREADS = dict(_spreads())


def word(ranks: Ranks) -> str:
    return f"{ranks[0]}-{ranks[1]}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """Checkpoints in `folder` that the first of each pair saves after CUT steps, and the second goes on from."""

    folder: Path
    pairs: Sequence[tuple[Ranks, Ranks]]

    def from_scratch(self, steps: Mapping[Ranks, int]) -> Iterator[tuple[int, Job]]:
        """Jobs named after their ranks, with their world sizes: of so many steps, and whoever saves for another."""
        saving = dict.fromkeys(saved for saved, _ in self.pairs)
        for ranks in {**steps, **saving}:
            job = Job(name=word(ranks), settings=SPREADS[ranks[0]], steps=steps.get(ranks, CUT))
            yield ranks[1], replace(job, target=self._store(ranks), saves_after=CUT) if ranks in saving else job

    def restores(self) -> Iterator[tuple[int, Job]]:
        """Jobs for after those, with their world sizes: each saves what it has restored, then trains."""
        for saved, to in self.pairs:
            name, settings, source = self.name(saved, to), SPREADS[to[0]], self._store(saved)
            yield to[1], Job(name=name, settings=settings, steps=REST, source=source, target=str(self.folder / name))

    def name(self, saved: Ranks, to: Ranks) -> str:
        """Of the job that restores."""
        return f"{word(saved)} to {word(to)}"

    def unequal_tensors(self, saved: Ranks, to: Ranks) -> list[str]:
        """What was restored with another bit."""
        return unequal_tensors(self._store(saved), str(self.folder / self.name(saved, to)))

    def _store(self, ranks: Ranks) -> str:
        return str(self.folder / word(ranks))


def by_world(jobs: Iterable[tuple[int, Job]]) -> list[tuple[int, list[Job]]]:
    """A phase for each world size."""
    phases: dict[int, list[Job]] = {}
    for world, job in jobs:
        phases.setdefault(world, []).append(job)
    return list(phases.items())


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
    limit = SECONDS + SECONDS_PER_JOB * sum(len(jobs) for _, jobs in phases)
    deadline = time.monotonic() + limit
    try:
        while any(rank.poll() is None for rank in ranks):
            assert time.monotonic() < deadline, f"not done within {limit} s"
            assert not any(rank.poll() for rank in ranks), _logs(folder)
            time.sleep(0.1)
        assert not any(rank.poll() for rank in ranks), _logs(folder)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    results: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return {name: Result(**result) for name, result in results.items()}


def _logs(folder: Path) -> str:
    return "\n".join(log.read_text()[-3000:] for log in sorted(folder.glob("rank-*.log")))


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
