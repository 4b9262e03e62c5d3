"""A scheduler that torchx knows, or one of the user's own, as a backend: one machine, which sees the run folder.

torchx describes a job and hands it on; how often it is started is the launcher's affair, and a person's.
"""

from __future__ import annotations

import atexit
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from cluster import settings as reading
from cluster.absent import refuse_absent
from cluster.errors import ClusterError, Refused
from cluster.job import Job, JobState, Request, Situation, Submission, send_all
from cluster.rent import Rent
from cluster.topology import Topology
from cluster.yaml_text import as_yaml

_CPUS_PER_GPU = 4
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_STATES = {
    "RUNNING": JobState.RUNNING, "UNKNOWN": JobState.UNKNOWN,
    **dict.fromkeys(("UNSUBMITTED", "SUBMITTED", "PENDING"), JobState.PENDING),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchxSettings:
    """scheduler: also `--on torchx:SCHEDULER`. arguments: its run options, each as KEY=VALUE.

    image: what torchx calls one: for local schedulers a folder. python: the interpreter there; None means the
    launcher's. gpus: whether a rank gets one. cpus_per_rank: cores. memory: MB.
    """

    scheduler: str | None = None
    arguments: tuple[str, ...] = ()
    image: str = "/"
    python: str | None = None
    gpus: bool = False
    cpus_per_rank: int | None = None
    memory: int = 1024

    def __post_init__(self) -> None:
        refuse_absent(self.scheduler or "", f"--on torchx:{self.scheduler}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> TorchxSettings:
        return reading.read(cls, "torchx", values, _READERS)


def _arguments(key: str, value: object) -> tuple[str, ...]:
    lines = reading.lines(key, value)
    for line in lines:
        if not re.match(r"[A-Za-z_]\w*=", line):
            raise ClusterError(f"{key}={line!r} must be KEY=VALUE; use a list for several")
    return lines


_READERS: Mapping[str, reading.Reader] = {
    "scheduler": reading.matching(_NAME, "must be the name of a scheduler of torchx"),
    "arguments": _arguments,
    "image": reading.IMAGE,
    "python": reading.PATH,
    "gpus": reading.truth,
    "cpus_per_rank": reading.number(1, 1024),
    "memory": reading.number(1, 100_000_000),
}


class TorchxBackend:
    """Its handle is torchx's own: `SCHEDULER://SESSION/APP`. What a local scheduler starts lives as long as we do."""

    name = "torchx"
    stop_signals = (signal.SIGTERM,)
    resumes_there = True
    note = ""
    shares_run_folder = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = TorchxSettings.from_mapping(settings)
        self.needs_launcher = (self._settings.scheduler or "").startswith("local")

    def is_reachable(self) -> bool:
        return find_spec("torchx") is not None

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        if nodes > 1:
            raise ClusterError(
                f"--nodes {nodes} is more than --on torchx has (1); use more --gpus, or --on kubernetes or slurm"
            )
        return Topology(nodes=1, ranks_per_node=ranks_per_node or 1, has_gpus=self._settings.gpus)

    def cores_per_node(self, topology: Topology) -> int:
        return topology.ranks_per_node * (self._settings.cpus_per_rank or (_CPUS_PER_GPU if topology.has_gpus else 1))

    def notice(self) -> tuple[str, float] | None:
        return None

    def rent(self) -> Rent:
        return Rent()

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, jobs: Sequence[Job]) -> Submission:
        if self._settings.scheduler is None:
            raise ClusterError("--on torchx needs a scheduler; give --on torchx:SCHEDULER")
        arguments = [word for argument in self._settings.arguments for word in ("-cfg", argument)]
        requests = (
            Request(
                path=job.run_folder / "torchx" / f"{job.label}.yaml",
                text=as_yaml(self._app(job)),
                command=("torchx", "run", "-s", self._settings.scheduler, *arguments),
            )
            for job in jobs
        )
        return Submission(
            command=("torchx",), folder=jobs[0].run_folder, log=jobs[0].logs / "node-0.log",
            environment=jobs[0].environment, requests=tuple(requests),
            unchecked=(f"whether {self._settings.scheduler} takes it, and sees {jobs[0].run_folder} under that path",),
        )  # fmt: skip

    def check(self, submission: Submission) -> None:
        """Each scheduler of torchx makes its own request of it; none is sent."""
        for request in submission.requests:
            with _runner() as runner:
                runner.dryrun(_app_of(request), self._settings.scheduler, _options(runner, self._settings))

    def submit(self, submission: Submission) -> list[str]:
        return send_all(submission.requests, self._run, self.kill)

    def _run(self, request: Request) -> str:
        with _runner() as runner:
            return str(runner.run(_app_of(request), self._settings.scheduler, _options(runner, self._settings)))

    def situation(self, handle: str) -> Situation:
        try:
            with _runner() as runner:
                status = runner.status(handle)
        except ClusterError as error:
            return Situation(state=JobState.UNKNOWN, reason=str(error))
        if status is None:
            return Situation(state=JobState.ENDED, reason="its scheduler has forgotten the job")
        return Situation(state=_STATES.get(status.state.name, JobState.ENDED), reason=status.msg or status.state.name)

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        return iter(())

    def stop(self, handle: str, number: signal.Signals) -> None:
        self.kill(handle)

    def kill(self, handle: str) -> None:
        """Torchx has one way to end a job; what comes before the end by force is its scheduler's affair."""
        with _runner() as runner:
            runner.cancel(handle)

    def _app(self, job: Job) -> dict[str, Any]:
        """An AppDef, as data."""
        settings, topology = self._settings, job.topology
        python = settings.python or sys.executable
        role = {
            "name": "node",
            "image": settings.image,
            "entrypoint": python,
            "args": ["-m", "cluster.node", python, *job.command[1:]],
            "env": dict(sorted((job.environment | {"PYTHONPATH": str(job.folder)}).items())),
            "num_replicas": 1,
            "max_retries": 0,
            "resource": {
                "cpu": self.cores_per_node(topology),
                "gpu": topology.ranks_per_node if topology.has_gpus else 0,
                "memMB": settings.memory,
            },
        }
        return {"name": job.label, "roles": [role]}


_runners: list[Any] = []  # one for this process: it knows what local schedulers have started


@contextmanager
def _runner() -> Iterator[Any]:
    """Foreign errors become ours. Raises ClusterError."""
    if find_spec("torchx") is None:
        raise ClusterError("--on torchx needs torchx; install it with: pip install 'launch-training[torchx]'")
    from torchx.runner import get_runner

    if not _runners:
        _runners.append(get_runner())
        atexit.register(_runners[0].close)
    try:
        yield _runners[0]
    except Exception as error:  # each scheduler has errors of its own
        raise Refused(f"torchx: {' '.join(str(error).split())}") from error


def _app_of(request: Request) -> Any:
    import yaml
    from torchx.specs import AppDef, Resource, Role

    content = yaml.safe_load(request.text)
    roles = [Role(**role | {"resource": Resource(**role["resource"])}) for role in content["roles"]]
    return AppDef(name=content["name"], roles=roles)


def _options(runner: Any, settings: TorchxSettings) -> dict[str, Any]:
    found: dict[str, Any] = runner.scheduler_run_opts(settings.scheduler).cfg_from_str(",".join(settings.arguments))
    return found
