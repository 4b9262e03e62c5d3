"""Managed jobs of SkyPilot as a backend: one machine, of any cloud, which is replaced when it is taken away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from cluster.errors import ClusterError
from cluster.job import Job, Request, Situation, Submission, send_all
from cluster.preemption import SPOT_NOTICE_SECONDS
from cluster.rent import Rent
from cluster.sky import client
from cluster.sky.settings import SkySettings
from cluster.sky.task import task
from cluster.topology import Topology
from cluster.yaml_text import as_yaml

_CPUS_PER_GPU = 4
_NOTICES = {"aws": "AWS spot", "gcp": "Google Cloud spot", "azure": "Azure spot"}


class SkyBackend:
    """Its handle is the name of the managed job. The run folder is on the machine, and goes with it."""

    name = "sky"
    needs_launcher = False
    stop_signals = (signal.SIGTERM,)
    resumes_there = True
    note = ""
    shares_run_folder = False

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = SkySettings.from_mapping(settings)

    def is_reachable(self) -> bool:
        return client.is_installed()

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        if nodes > 1:
            raise ClusterError(
                f"--nodes {nodes} is more than --on sky has (1): its machines share no folder for the run; "
                "use more --gpus, or --on kubernetes"
            )
        has_gpus = self._settings.accelerators is not None
        return Topology(nodes=1, ranks_per_node=ranks_per_node or 1, has_gpus=has_gpus)

    def cores_per_node(self, topology: Topology) -> int:
        return topology.ranks_per_node * (_CPUS_PER_GPU if topology.has_gpus else 1)

    def notice(self) -> tuple[str, float] | None:
        """Where the cloud is given, and says beforehand that it takes a machine away."""
        cloud = _NOTICES.get(self._settings.cloud or "")
        return None if cloud is None else ("sky.cloud", SPOT_NOTICE_SECONDS[cloud])

    def rent(self) -> Rent:
        kind = self._settings.accelerators
        accelerator = "A100-40GB" if kind is not None and kind.upper() == "A100" else kind
        return Rent(cloud=self._settings.cloud, accelerator=accelerator, is_spot=self._settings.use_spot)

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, jobs: Sequence[Job]) -> Submission:
        return Submission(
            command=("sky",),
            folder=jobs[0].run_folder,
            log=jobs[0].logs / "node-0.log",
            environment=jobs[0].environment,
            requests=tuple(self._request(job) for job in jobs),
            unchecked=(
                "whether SkyPilot is installed and has an account, and what it would take: sky check, sky gpus list",
                f"whether the machine may write {jobs[0].checkpoints}, with {self._credentials()}",
            ),
        )

    def check(self, submission: Submission) -> None:
        """SkyPilot looks at a managed job only when it is launched."""
        for name in self._settings.secrets:
            if not os.environ.get(name):
                raise ClusterError(f"sky.secrets names {name}, which is not set here; export it, or leave it out")
        client.check_installed()

    def submit(self, submission: Submission) -> list[str]:
        return send_all(submission.requests, _launch, client.cancel)

    def situation(self, handle: str) -> Situation:
        return client.situation_of(handle)

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        return client.log_lines(handle, follow=follow)

    def stop(self, handle: str, number: signal.Signals) -> None:
        client.cancel(handle)

    def kill(self, handle: str) -> None:
        client.cancel(handle)

    def _request(self, job: Job) -> Request:
        path = job.run_folder / "sky" / f"{job.label}.yaml"
        secrets = [word for name in self._settings.secrets for word in ("--secret", name)]
        return Request(
            path=path,
            text=as_yaml(task(job, self._settings)),
            command=("sky", "jobs", "launch", "--yes", "--detach-run", *secrets, str(path)),
        )

    def _credentials(self) -> str:
        return ", ".join(self._settings.secrets) or "the role that its cloud gives it, as sky.secrets is not given"


def _launch(request: Request) -> str:
    client.launch(request.command)
    return request.path.stem
