"""What is asked of the Kubernetes API, through its Python client (the extra `kubernetes`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from cluster.errors import ClusterError, Refused
from cluster.job import JobState, Situation

_KIND = {"group": "jobset.x-k8s.io", "version": "v1alpha2", "plural": "jobsets"}
_SECONDS = 30.0
_NOT_FOUND = 404


class ApiSilent(ClusterError):
    """The API server cannot be asked."""

    exit_code = 3


class Missing(Refused):
    """The API server knows no such object."""


def answers(context: str | None) -> bool:
    """Whether there is an API server that can be asked."""
    try:
        with _asking(context) as kubernetes:
            kubernetes.version.get_code(_request_timeout=_SECONDS)
    except ClusterError:
        return False
    return True


def create(manifest: str, context: str | None, *, is_trial: bool = False) -> str:
    """The handle of the new JobSet. A trial is looked at by the server, and not kept. Raises ClusterError."""
    import yaml

    body = yaml.safe_load(manifest)
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    options = {"dry_run": "All"} if is_trial else {}
    with _asking(context) as kubernetes:
        kubernetes.objects.create_namespaced_custom_object(
            **_KIND, namespace=namespace, body=body, _request_timeout=_SECONDS, **options
        )
    return "/".join(filter(None, (context, namespace, name)))


def situation_of(handle: str) -> Situation:
    """Of a JobSet; one that the server has forgotten has ended."""
    context, namespace, name = _parts(handle)
    try:
        with _asking(context) as kubernetes:
            found = kubernetes.objects.get_namespaced_custom_object(
                **_KIND, namespace=namespace, name=name, _request_timeout=_SECONDS
            )
            pods = kubernetes.core.list_namespaced_pod(
                namespace, label_selector=_pods_of(name), _request_timeout=_SECONDS
            ).items
    except Missing:
        return Situation(state=JobState.ENDED, reason="Kubernetes has no such JobSet any more")
    except ClusterError as error:
        return Situation(state=JobState.UNKNOWN, reason=str(error))
    return _situation(found, [waits for pod in pods if (waits := _why_it_waits(pod))])


def delete(handle: str) -> None:
    """Pods get their grace; the JobSet is there until the last one is gone. Raises ClusterError."""
    _delete(handle, "Foreground")


def kill(handle: str) -> None:
    """Raises ClusterError."""
    context, namespace, name = _parts(handle)
    with _asking(context) as kubernetes:
        kubernetes.core.delete_collection_namespaced_pod(
            namespace, label_selector=_pods_of(name), grace_period_seconds=0, _request_timeout=_SECONDS
        )
    _delete(handle, "Background")


def _delete(handle: str, policy: str) -> None:
    context, namespace, name = _parts(handle)
    try:
        with _asking(context) as kubernetes:
            kubernetes.objects.delete_namespaced_custom_object(
                **_KIND, namespace=namespace, name=name, propagation_policy=policy, _request_timeout=_SECONDS
            )
    except Missing:
        pass


def _situation(jobset: dict[str, Any], waiting: list[str]) -> Situation:
    status = jobset.get("status", {})
    again = int(status.get("restarts", 0))
    conditions = {c["type"]: c.get("message", "") for c in status.get("conditions", []) if c.get("status") == "True"}
    for ended in ("Completed", "Failed"):
        if ended in conditions:
            return Situation(state=JobState.ENDED, reason=f"{ended}: {conditions[ended]}", starts_again=again)
    if "deletionTimestamp" in jobset["metadata"]:
        return Situation(state=JobState.RUNNING, reason="is being deleted", starts_again=again)
    if "Suspended" in conditions:
        return Situation(state=JobState.PENDING, reason=f"Suspended: {conditions['Suspended']}", starts_again=again)
    are_ready = sum(job.get("ready", 0) + job.get("succeeded", 0) for job in status.get("replicatedJobsStatus", []))
    if waiting or not are_ready:
        return Situation(state=JobState.PENDING, reason="; ".join(dict.fromkeys(waiting)), starts_again=again)
    return Situation(state=JobState.RUNNING, starts_again=again)


def _why_it_waits(pod: Any) -> str:
    """Such as ImagePullBackOff, or what the scheduler says; empty for a pod that does not wait."""
    for container in pod.status.container_statuses or []:
        if (waiting := container.state.waiting) is not None:
            return f"{waiting.reason}: {waiting.message}" if waiting.message else str(waiting.reason)
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message)
    return ""


def _parts(handle: str) -> tuple[str | None, str, str]:
    """(context, namespace, name); a context may have slashes of its own."""
    *context, namespace, name = handle.rsplit("/", 2)
    return (context[0] if context else None), namespace, name


def _pods_of(name: str) -> str:
    return f"jobset.sigs.k8s.io/jobset-name={name}"


class _Clients:
    """Of one cluster, for as long as a question takes."""

    def __init__(self, context: str | None) -> None:
        from kubernetes import client, config

        # Left to itself it looks at the variable once, when it is imported.
        self.api = config.new_client_from_config(config_file=os.environ.get("KUBECONFIG"), context=context)
        self.api.configuration.retries = False
        self.objects = client.CustomObjectsApi(self.api)
        self.core = client.CoreV1Api(self.api)
        self.version = client.VersionApi(self.api)


@contextmanager
def _asking(context: str | None) -> Iterator[Any]:
    """Foreign errors become ours. Raises Missing, Refused and ApiSilent."""
    if find_spec("kubernetes") is None:
        raise ClusterError(
            "--on kubernetes needs its Python client; install it with: pip install 'launch-training[kubernetes]'"
        )
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        clients = _Clients(context)
        try:
            yield clients
        finally:
            clients.api.close()
    except ConfigException as error:
        raise ClusterError(f"no Kubernetes cluster is configured here: {_in_short(error)}; set KUBECONFIG") from error
    except ApiException as error:
        kind = Missing if error.status == _NOT_FOUND else Refused
        raise kind(f"Kubernetes: {_message(error)}") from error
    except HTTPError as error:
        raise ApiSilent(f"Kubernetes does not answer: {_in_short(error)}; try again later") from error


def _message(error: Any) -> str:
    """What the server says is wrong."""
    try:
        return _in_short(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        return f"{error.status} {error.reason}"


def _in_short(error: object) -> str:
    return " ".join(str(error).split())
