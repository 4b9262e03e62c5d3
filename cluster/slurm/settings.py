"""What a job asks of Slurm beyond nodes and ranks: the settings `slurm.*`, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster import settings
from cluster.errors import ClusterError

_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|infinite|unlimited", re.IGNORECASE)
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
SIGNALS = ("USR2", "USR1", "TERM", "HUP", "INT")
_MOUNT = re.compile(r"/[A-Za-z0-9_.+@=/-]*(:/[A-Za-z0-9_.+@=/-]*(:[a-z+]+)?)?")
RUNTIMES = ("pyxis", "apptainer")
GPU_SPELLINGS = ("gpus-per-node", "gres", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """None leaves the choice to Slurm.

    gpus: how GPUs are asked for; `none` gives CPU ranks, and None means that the partition decides.
    cpus_per_rank: cores; None means 1 for a CPU rank and 4 for a GPU.
    least_nodes: a start may have fewer nodes than were asked for, down to this number; None means that it may not.
    signal, signal_seconds: what Slurm sends that long before the time limit, so that the run saves and goes on.
    python: the interpreter on the nodes; None means that of the launcher, under the same path.
    container, container_mounts: the image that tasks run in, and what they see of the nodes beside the run folder.
    setup: lines of shell before the run starts. lines: more options of sbatch.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    time: str | None = None
    least_nodes: int | None = None
    memory: str | None = None  # per node
    cpus_per_rank: int | None = None
    gpus: str | None = None
    gpu_type: str | None = None
    exclusive: bool = False
    signal: str = "USR2"
    signal_seconds: int = 120
    python: str | None = None
    container: str | None = None
    container_runtime: str = "pyxis"
    container_mounts: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> SlurmSettings:
        return settings.read(cls, "slurm", values, _READERS)


def _mounts(key: str, value: object) -> tuple[str, ...]:
    lines = settings.lines(key, value)
    for line in lines:
        if not _MOUNT.fullmatch(line):
            raise ClusterError(
                f"{key}={line!r} must be an absolute path, or PATH:PATH, or PATH:PATH:ro; use a list for several"
            )
    return lines


def _options(key: str, value: object) -> tuple[str, ...]:
    lines = settings.lines(key, value)
    for line in lines:
        if not re.match(r"--?[A-Za-z]", line):
            raise ClusterError(f"{key}={line!r} must be an option of sbatch, such as --mail-type=END")
    return lines


_READERS: Mapping[str, settings.Reader] = {
    **dict.fromkeys(("account", "partition", "qos", "constraint", "reservation", "exclude", "gpu_type"), settings.word),
    "time": settings.matching(_TIME, "is not a time limit; use minutes, HH:MM:SS or DAYS-HH:MM:SS"),
    "memory": settings.matching(
        _MEMORY, "is not an amount of memory per node; use a number of MB, or one with K, M, G or T"
    ),
    "least_nodes": settings.number(1, 1_000_000),
    "cpus_per_rank": settings.number(1, 1024),
    "gpus": settings.one_of(GPU_SPELLINGS),
    "exclusive": settings.truth,
    "signal": settings.one_of(SIGNALS),
    "signal_seconds": settings.number(1, 65535),
    "python": settings.PATH,
    "container": settings.IMAGE,
    "container_runtime": settings.one_of(RUNTIMES),
    "container_mounts": _mounts,
    "setup": settings.lines,
    "lines": _options,
}
