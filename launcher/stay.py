"""How long attempts have had GPUs, and of what kind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.backend import backend_named
from cluster.errors import ClusterError
from cluster.job import JobState, Situation
from cluster.rent import Rent
from launcher.preflight.gpus import gpu_of_model
from launcher.runs import Attempt

_ALIVE = ("STARTING", "RUNNING", "RECOVERING")
_NEEDED = {"target", "nodes", "ranks_per_node"}
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """The time of an attempt on GPUs. gpu: their kind. None where nobody has told.

    again_seconds: of these, in which steps were done that had been done before.
    """

    attempt: int
    nodes: int
    gpus_per_node: int
    gpu: str | None
    rent: Rent
    seconds: float | None
    again_seconds: float

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.nodes * self.gpus_per_node / _SECONDS_PER_HOUR


def stays_of(
    attempts: Sequence[Attempt], states: Sequence[Mapping[str, Any]], step_seconds: float, newest: Situation | None
) -> Iterator[Stay]:
    """Of the attempts on GPUs. states: what `launch status` says of each. newest: the job of the last one."""
    unknown = Situation(state=JobState.UNKNOWN)
    for attempt, state in zip(attempts, states, strict=True):
        record = attempt.record()
        if not record.get("has_gpus") or not record.keys() >= _NEEDED:
            continue
        situation = newest if newest is not None and attempt is attempts[-1] else unknown
        rent = _rent(record)
        is_seen = backend_named(record["target"]).shares_run_folder
        yield Stay(
            attempt=attempt.number,
            nodes=record["nodes"],
            gpus_per_node=record["ranks_per_node"],
            gpu=_gpu(attempt, rent),
            rent=replace(rent, cloud=rent.cloud or situation.cloud),
            seconds=_seconds(attempt, state) if is_seen else situation.rented_seconds,
            again_seconds=state["lost_steps"] * step_seconds,
        )


def _rent(record: Mapping[str, Any]) -> Rent:
    try:
        return backend_named(record["target"], record.get("settings")).rent()
    except ClusterError:  # a file that they name may be gone since
        return Rent()


def _gpu(attempt: Attempt, rent: Rent) -> str | None:
    """What its first rank has told, or what was asked for."""
    told = (event.get("gpu") for event in attempt.read_events() if event.get("event") == "model")
    gpu = gpu_of_model(str(next(told, None) or rent.accelerator))
    return None if gpu is None else gpu.name


def _seconds(attempt: Attempt, state: Mapping[str, Any]) -> float:
    """To its outcome, until now, or to the last that they have written; 0 for one that has never begun."""
    last = attempt.last_sign()
    if last is None or state["started"] is None:
        return 0.0
    end = time.time() if state["state"] in _ALIVE else state["ended"] or last
    return max(0.0, float(end - state["started"]))
