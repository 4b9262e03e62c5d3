"""A Kubernetes cluster as a backend: one JobSet per job, created through the API."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from cluster.job import Job, Request, Situation, Submission, send_all
from cluster.kubernetes import api
from cluster.kubernetes.manifest import USUAL_GRACE_SECONDS, cpus_per_node, grace_seconds, jobset, path_of
from cluster.kubernetes.settings import PROVIDERS, KubernetesSettings
from cluster.rent import Rent
from cluster.topology import Topology
from cluster.yaml_text import as_yaml

_API = "/apis/jobset.x-k8s.io/v1alpha2/namespaces"


class KubernetesBackend:
    """Its handle is `NAMESPACE/JOBSET`, after `CONTEXT/` if one was chosen."""

    name = "kubernetes"
    needs_launcher = False
    stop_signals = (signal.SIGTERM,)
    resumes_there = True
    note = ""
    shares_run_folder = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = KubernetesSettings.from_mapping(settings)

    def is_reachable(self) -> bool:
        return api.answers(self._settings.context)

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        return Topology(nodes=nodes, ranks_per_node=ranks_per_node or 1, has_gpus=self._settings.gpus != "none")

    def cores_per_node(self, topology: Topology) -> int:
        return cpus_per_node(self._settings, topology.ranks_per_node)

    def notice(self) -> tuple[str, float] | None:
        return "--grace-seconds", float(grace_seconds(None, self._settings))

    def rent(self) -> Rent:
        provider = self._settings.provider
        cloud = None if provider is None else PROVIDERS[provider].cloud
        return Rent(cloud=cloud, is_spot=self._settings.spot)

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, jobs: Sequence[Job]) -> Submission:
        settings = self._settings
        post = ("POST", f"{_API}/{settings.namespace}/jobsets")
        return Submission(
            command=post,
            folder=jobs[0].run_folder,
            log=jobs[0].logs / "node-0.log",
            environment=jobs[0].environment,
            requests=tuple(
                Request(path=path_of(job), text=as_yaml(jobset(job, settings)), command=post) for job in jobs
            ),
            warnings=tuple(_warnings(jobs[0], settings)),
            unchecked=(
                f"whether namespace {settings.namespace} has JobSet, the claim {settings.volume} and your permission",
                f"whether nodes can pull {settings.image}, and whether there are such nodes",
            ),
        )

    def check(self, submission: Submission) -> None:
        """The API server looks at it, and so do its admission webhooks."""
        for request in submission.requests:
            api.create(request.text, self._settings.context, is_trial=True)

    def submit(self, submission: Submission) -> list[str]:
        return send_all(
            submission.requests, lambda request: api.create(request.text, self._settings.context), api.delete
        )

    def situation(self, handle: str) -> Situation:
        return api.situation_of(handle)

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        return iter(())

    def stop(self, handle: str, number: signal.Signals) -> None:
        api.delete(handle)

    def kill(self, handle: str) -> None:
        api.kill(handle)


def _warnings(job: Job, settings: KubernetesSettings) -> Iterator[str]:
    given, wanted = grace_seconds(job.grace_seconds, settings), job.grace_seconds
    if given < (USUAL_GRACE_SECONDS if wanted is None else wanted):
        asked = "" if wanted is None else f", not --grace-seconds {wanted}"
        yield f"spot nodes of {settings.provider} give a pod at most {given} s to save{asked}; the run counts on that"
