"""The machines that an attempt has been given, as one of them sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.errors import ClusterError
from cluster.preemption import Mark
from cluster.slurm.end import end_of

_NODE, _HOSTS = "LAUNCH_NODE", "LAUNCH_HOSTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """`node` is the place of this machine among `hosts`. `job` is the scheduler's name for it, the same each time that
    the scheduler starts it; `start` counts these, from 0.

    address: of this machine, where the scheduler tells it. grace_seconds: from a stop signal to the end by force.
    ask_end: asks the scheduler for that end instead. None where there is no telling.
    """

    job: str
    start: int
    node: int
    hosts: tuple[str, ...]
    address: str | None = None
    grace_seconds: int | None = None
    ask_end: Callable[[], Mark] | None = None

    @property
    def nodes(self) -> int:
        return len(self.hosts)


def given_to(node: int, hosts: Sequence[str]) -> dict[str, str]:
    """The environment that tells a node process which of the machines it is on."""
    return {_NODE: str(node), _HOSTS: " ".join(hosts)}


def given_allocation() -> Allocation:
    """What the environment says; one machine, which nobody has allocated, where it says nothing."""
    hosts = tuple(os.environ.get(_HOSTS, "localhost").split())
    return Allocation(job="", start=0, node=int(os.environ.get(_NODE, 0)), hosts=hosts)


def batch_allocation() -> Allocation:
    """Of a node process in a batch job. Raises ClusterError outside one."""
    if "LAUNCH_JOB" not in os.environ:
        return slurm_allocation()
    told = {
        name: os.environ[f"LAUNCH_{name}"] for name in ("JOB", "START", "NODE", "HOSTS", "ADDRESS", "GRACE_SECONDS")
    }
    return Allocation(
        job=told["JOB"], start=int(told["START"]), node=int(told["NODE"]), hosts=tuple(told["HOSTS"].split()),
        address=told["ADDRESS"], grace_seconds=int(told["GRACE_SECONDS"]),
    )  # fmt: skip


def slurm_allocation() -> Allocation:
    """From the environment of a task of a Slurm job. Raises ClusterError outside one."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    if "SLURM_JOB_ID" not in os.environ:
        raise ClusterError("this is no task of a Slurm job: SLURM_JOB_ID is not set; submit it with --on slurm")
    task = SlurmJobEnvironment()
    start = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    return Allocation(
        job=task.job_id, start=start, node=task.node, hosts=tuple(task.hostnames), ask_end=partial(end_of, task.job_id)
    )
