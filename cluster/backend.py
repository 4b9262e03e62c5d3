"""What a place to run on must offer, and the table of places."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Protocol

from cluster.absent import refuse_absent
from cluster.errors import ClusterError
from cluster.job import Job, Situation, Submission
from cluster.rent import Rent
from cluster.topology import Topology


class Backend(Protocol):
    """A place where jobs run.

    needs_launcher: the job lives no longer than the process that submitted it, which also starts it again.
    stop_signals: by these it asks the processes of a job to stop, before it ends them by force.
    resumes_there: a run that was there goes on there, with as many nodes and ranks, if nothing else is said.
    note: what to know of the place before something runs there; empty for nothing.
    shares_run_folder: what the job writes into the run folder is seen here, too.
    """

    name: str
    needs_launcher: bool
    resumes_there: bool
    note: str

    shares_run_folder: bool

    @property
    def stop_signals(self) -> tuple[signal.Signals, ...]: ...

    def is_reachable(self) -> bool:
        """Whether jobs can be submitted from this machine."""
        ...

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        """The machines that were asked for. Raises ClusterError when the place does not have them."""
        ...

    def cores_per_node(self, topology: Topology) -> int:
        """CPU cores for the ranks of one node."""
        ...

    def notice(self) -> tuple[str, float] | None:
        """The setting, and its seconds, by which the place says that it will end a job; None where it never does."""
        ...

    def rent(self) -> Rent:
        """What is known of the price of its machines."""
        ...

    def settings(self) -> dict[str, object]:
        """What makes an equal backend again, through `backend_named`."""
        ...

    def render(self, jobs: Sequence[Job]) -> Submission:
        """What `submit` would execute. Pure. Several jobs have one size; a place that needs a launcher takes one."""
        ...

    def check(self, submission: Submission) -> None:
        """Have the place look at it without running it. Raises ClusterError when it would be refused."""
        ...

    def submit(self, submission: Submission) -> list[str]:
        """Start it; for each job a handle that later calls take, also in another process.

        Raises NoCapacity when the machines are not there now, and ClusterError when the place refuses it.
        """
        ...

    def situation(self, handle: str) -> Situation: ...

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        """What the job prints, where its run folder is not seen here; elsewhere nothing. Raises ClusterError."""
        ...

    def stop(self, handle: str, number: signal.Signals) -> None:
        """Ask the job to save and leave, by the signal that the launcher was asked by."""
        ...

    def kill(self, handle: str) -> None:
        """End the job at once."""
        ...


BACKENDS = {
    "kubernetes": "cluster.kubernetes.backend:KubernetesBackend",
    "local": "cluster.local:LocalBackend",
    "local_spot": "cluster.spot.local:LocalSpotBackend",
    "sky": "cluster.sky.backend:SkyBackend",
    "slurm": "cluster.slurm.backend:SlurmBackend",
    "torchx": "cluster.torchx_:TorchxBackend",
}


def backend_named(name: str, settings: Mapping[str, object] | None = None) -> Backend:
    """The backend `name`. Raises ClusterError for an unknown one, and for settings that it does not have."""
    refuse_absent(name, f"--on {name}")
    if name not in BACKENDS:
        from difflib import get_close_matches

        nearest = get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ClusterError(
            f"--on {name} is not a known target; {hint}use one of: {', '.join(sorted(BACKENDS))}, "
            "or the name of a file in profiles/"
        )
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(settings or {})
    return backend
