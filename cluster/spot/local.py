"""Spot machines that this one plays: what `--on spot` means where no cloud is set up."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from cluster.errors import ClusterError, NoCapacity
from cluster.job import Job, Situation, Submission
from cluster.local import LocalBackend
from cluster.rent import Rent
from cluster.spot.interruptions import Record
from cluster.spot.machines import TAKEN_CODE
from cluster.spot.settings import SpotSettings
from cluster.topology import Topology, local_core_count, local_gpus

FOLDER = "spot"
_RECORD = "interruptions.jsonl"


class LocalSpotBackend(LocalBackend):
    """A job is a process that has the machines, and they end with it."""

    name = "local_spot"
    resumes_there = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__({})
        self._settings = SpotSettings.from_mapping(settings)
        self.note = f"spot machines that are processes here, {self._settings}"
        self._records: dict[str, Record] = {}

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        """Machines that share the GPUs of this one, or have CPU ranks where it has none."""
        self._settings.check_nodes(nodes)
        gpus = len(local_gpus())
        wanted = nodes * (ranks_per_node or 1)
        if gpus and wanted > gpus:
            raise ClusterError(
                f"--nodes {nodes} --gpus {ranks_per_node or 1} is more than this machine has ({gpus} GPUs for all of "
                "them); use fewer"
            )
        return Topology(nodes=nodes, ranks_per_node=ranks_per_node or 1, has_gpus=gpus > 0)

    def cores_per_node(self, topology: Topology) -> int:
        return max(1, local_core_count() // topology.nodes)

    def rent(self) -> Rent:
        return Rent(is_spot=True)

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, jobs: Sequence[Job]) -> Submission:
        (job,) = jobs
        folder = job.run_folder / FOLDER
        flags = ["--nodes", str(job.topology.nodes), "--logs", str(job.logs), "--record", str(folder / _RECORD)]
        if job.topology.has_gpus:
            flags += ["--gpus", ",".join(local_gpus()[: job.topology.ranks])]
        for name, value in asdict(self._settings).items():
            flags += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        return Submission(
            command=(sys.executable, "-m", "cluster.spot.machines", *flags, *job.command),
            folder=job.folder,
            log=folder / "machines.log",
            environment=job.whole_environment(),
        )

    def submit(self, submission: Submission) -> list[str]:
        record = Record(submission.log.with_name(_RECORD))
        if (seconds := record.capacity_in_seconds(time.time())) > 0:
            raise NoCapacity(f"there are too few spot machines (enough in {seconds:.1f} s)")
        submission.log.parent.mkdir(exist_ok=True)
        (handle,) = super().submit(submission)
        self._records[handle] = record
        return [handle]

    def situation(self, handle: str) -> Situation:
        found = super().situation(handle)
        child = self._children.get(handle)
        if child is None or child.returncode != TAKEN_CODE:
            return found
        return replace(found, reason=str(self._records[handle].last()), was_taken=True)
