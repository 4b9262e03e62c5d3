"""What a place to run on must offer, and the table of places."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Protocol

from cluster.errors import ClusterError
from cluster.job import Job, JobState, Submission


class Backend(Protocol):
    """A place where jobs run. `most_nodes`: how many machines it has; None where only the place knows."""

    name: str
    most_nodes: int | None

    def render(self, job: Job) -> Submission:
        """What `submit` would execute. Pure."""
        ...

    def submit(self, submission: Submission) -> str:
        """Start it; the answer is a handle that later calls take, also in another process."""
        ...

    def state(self, handle: str) -> JobState: ...

    def stop(self, handle: str, number: signal.Signals) -> None:
        """Ask the job to save and leave, by the signal that the launcher was asked by."""
        ...

    def kill(self, handle: str) -> None:
        """End the job at once."""
        ...


_BACKENDS = {"local": "cluster.local:LocalBackend"}


def backend_named(name: str) -> Backend:
    """The backend `name`. Raises ClusterError for an unknown one."""
    if name not in _BACKENDS:
        raise ClusterError(f"--on {name} is not a known target; use one of: {', '.join(sorted(_BACKENDS))}")
    module, _, attribute = _BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend
