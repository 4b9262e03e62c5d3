"""The JobSet of a job, as data.

A JobSet is one Job whose pods are the nodes. A pod that is taken away, or that ends with another code than those which
are final, fails the Job for a reason that restarts the JobSet without counting; any other end is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.job import FINAL_CODES, Job
from cluster.kubernetes.settings import PROVIDERS, KubernetesSettings
from cluster.preemption import SPOT_NOTICE_SECONDS

CPUS_PER_GPU = 4
USUAL_GRACE_SECONDS = 120
_CONTAINER = "node"
_KEPT_SECONDS = 7 * 86400  # of a JobSet that has ended, and its pods: to look at
_NEVER_STARTED = (126, 127, 128)  # what shells and container runtimes say of a command that cannot be executed


def jobset(job: Job, settings: KubernetesSettings) -> dict[str, Any]:
    """Raises ClusterError."""
    labels = {"app.kubernetes.io/managed-by": "launch"}
    if settings.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = settings.queue
    restart = {
        "name": "taken_or_lost",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.label, "namespace": settings.namespace, "labels": labels},
        "spec": {
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "failurePolicy": {"maxRestarts": 0, "rules": [restart]},
            "replicatedJobs": [{"name": "nodes", "replicas": 1, "template": {"spec": _job(job, settings)}}],
        },
    }


def grace_seconds(asked: int | None, settings: KubernetesSettings) -> int:
    """From SIGTERM to SIGKILL: what was asked for, or what spot nodes of this provider give, if that is less."""
    wanted = USUAL_GRACE_SECONDS if asked is None else asked
    if not settings.spot or settings.provider is None:
        return wanted
    return min(wanted, int(SPOT_NOTICE_SECONDS[PROVIDERS[settings.provider].notice]))


def cpus_per_node(settings: KubernetesSettings, ranks_per_node: int) -> int:
    return ranks_per_node * (settings.cpus_per_rank or (1 if settings.gpus == "none" else CPUS_PER_GPU))


def _job(job: Job, settings: KubernetesSettings) -> dict[str, Any]:
    nodes = job.topology.nodes
    taken = {"type": "DisruptionTarget", "status": "True"}
    not_final = {"containerName": _CONTAINER, "operator": "NotIn", "values": [*FINAL_CODES, *_NEVER_STARTED]}
    return {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [taken]},
                {"action": "FailJob", "onExitCodes": not_final},
            ]
        },
        "template": {"spec": _pod(job, settings)},
    }


def _pod(job: Job, settings: KubernetesSettings) -> dict[str, Any]:
    if settings.image is None or settings.volume is None:
        missing = "image" if settings.image is None else "volume"
        raise ClusterError(f"--on kubernetes needs kubernetes.{missing}; {_REMEDIES[missing]}")
    if not job.run_folder.is_relative_to(settings.mount):
        raise ClusterError(
            f"{job.run_folder} is not on the volume that pods have at {settings.mount}; use a --runs-dir below that, "
            "or another kubernetes.mount"
        )
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds(job.grace_seconds, settings),
        "containers": [_container(job, settings)],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": settings.volume}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # counts as memory of the container
        ],
    }
    if selector := _selector(settings):
        pod["nodeSelector"] = selector
    if tolerations := list(_tolerations(settings)):
        pod["tolerations"] = tolerations
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    if settings.user is not None:
        user, _, group = settings.user.partition(":")
        pod["securityContext"] = {"runAsUser": int(user)} | ({"runAsGroup": int(group)} if group else {})
    return pod


_REMEDIES = {
    "image": "give an image with Python and the launcher's packages",
    "volume": "give a claim on a volume that many nodes can write (ReadWriteMany), for the run folder",
}


def _container(job: Job, settings: KubernetesSettings) -> dict[str, Any]:
    module, _, function = job.entry.partition(":")
    call = f"import sys; from {module} import {function}; {function}(sys.argv[1])"
    resources: dict[str, Any] = {"cpu": str(cpus_per_node(settings, job.topology.ranks_per_node))}
    limits: dict[str, Any] = {settings.gpus: str(job.topology.ranks_per_node)} if job.topology.has_gpus else {}
    if settings.memory is not None:  # beyond it the pod is ended, and not its neighbours on the node
        resources["memory"] = limits["memory"] = settings.memory
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": settings.image,
        "command": [settings.python, "-u", "-c", call, _literal(str(job.run_folder))],
        "workingDir": str(job.folder),
        "env": list(_environment(job, settings)),
        "resources": {"requests": resources} | ({"limits": limits} if limits else {}),
        "volumeMounts": [{"name": "runs", "mountPath": settings.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if settings.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in settings.secrets]
    return container


def _environment(job: Job, settings: KubernetesSettings) -> Iterator[dict[str, Any]]:
    """Of a node process: the run's own, and what `cluster.allocation` reads."""
    values = {
        **job.environment_elsewhere(),
        "PYTHONPATH": str(job.folder),
        "LAUNCH_JOB": handle_of(job, settings),
        "LAUNCH_HOSTS": " ".join(f"{job.label}-nodes-0-{node}" for node in range(job.topology.nodes)),
        "LAUNCH_GRACE_SECONDS": str(grace_seconds(job.grace_seconds, settings)),
    }
    for name, value in sorted(values.items()):
        yield {"name": name, "value": _literal(value)}
    fields = {
        "LAUNCH_START": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']",
        "LAUNCH_NODE": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
        "LAUNCH_ADDRESS": "status.podIP",
    }
    for name, path in fields.items():
        yield {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _literal(text: str) -> str:
    """For where Kubernetes fills in $(VARIABLE)."""
    return text.replace("$", "$$")


def handle_of(job: Job, settings: KubernetesSettings) -> str:
    """`NAMESPACE/NAME`, after `CONTEXT/` if one was chosen."""
    return "/".join(filter(None, (settings.context, settings.namespace, job.label)))


def _selector(settings: KubernetesSettings) -> dict[str, str]:
    spot = PROVIDERS[settings.provider].spot if settings.spot and settings.provider else {}
    return {**spot, **dict(line.split("=", 1) for line in settings.node_selector)}


def _tolerations(settings: KubernetesSettings) -> Iterator[dict[str, str]]:
    taints = [] if settings.gpus == "none" else [settings.gpus]
    if settings.spot and settings.provider and (taint := PROVIDERS[settings.provider].tolerates):
        taints.append(taint)
    for taint in taints:
        yield {"key": taint, "operator": "Exists", "effect": "NoSchedule"}


def path_of(job: Job) -> Path:
    return job.run_folder / "kubernetes" / f"{job.label}.yaml"
