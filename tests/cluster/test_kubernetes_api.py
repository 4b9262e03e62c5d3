"""What is asked of the Kubernetes API, by its real client; a server on loopback answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.jobs import JOB
from support.kubernetes_server import ELSEWHERE, Cluster, kubernetes_server

from cluster.errors import ClusterError, Refused
from cluster.job import Job, JobState, Submission
from cluster.kubernetes import api
from cluster.kubernetes.backend import KubernetesBackend

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed; scripts/setup --dev does it")
HANDLE = "research/r1-1"


def condition(kind: str, message: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "message": message}


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with kubernetes_server(tmp_path / "config", "research") as cluster:
        yield cluster


def job(tmp_path: Path, name: str = "r1") -> Job:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return replace(JOB, name=name, run_folder=folder, folder=folder / "code", logs=folder / "logs")


def backend(tmp_path: Path, **settings: object) -> KubernetesBackend:
    needed = {"image": "train:1", "volume": "runs", "mount": str(tmp_path), "namespace": "research"}
    return KubernetesBackend(needed | settings)


def rendered(tmp_path: Path, *names: str, **settings: object) -> Submission:
    return backend(tmp_path, **settings).render([job(tmp_path, name) for name in names or ("r1",)])


def test_a_trial_leaves_nothing_and_a_submission_is_there(tmp_path, cluster):
    submission = rendered(tmp_path)
    backend(tmp_path).check(submission)
    assert cluster.jobsets == {}
    assert backend(tmp_path).submit(submission) == [HANDLE]
    assert list(cluster.jobsets) == [("research", "r1-1")]
    assert (tmp_path / "r1/kubernetes/r1-1.yaml").read_text() == submission.requests[0].text


def test_another_context_is_part_of_the_handle(tmp_path, cluster):
    there = backend(tmp_path, context=ELSEWHERE)
    (handle,) = there.submit(there.render([job(tmp_path)]))
    assert handle == f"{ELSEWHERE}/{HANDLE}"
    assert there.situation(handle).state is JobState.PENDING
    with pytest.raises(ClusterError, match=r"no Kubernetes cluster is configured here: .*nowhere"):
        api.create(rendered(tmp_path).requests[0].text, "nowhere")


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        ({}, JobState.PENDING, ""),
        ({"replicatedJobsStatus": [{"name": "nodes", "ready": 2}], "restarts": 3}, JobState.RUNNING, ""),
        ({"conditions": [condition("Suspended", "queued")]}, JobState.PENDING, "Suspended: queued"),
        ({"conditions": [condition("Completed", "all done")]}, JobState.ENDED, "Completed: all done"),
        ({"conditions": [condition("Failed", "Job failed")]}, JobState.ENDED, "Failed: Job failed"),
        (
            {"conditions": [condition("Suspended", "", "False")], "replicatedJobsStatus": [{"ready": 1}]},
            JobState.RUNNING, "",
        ),
    ],
)  # fmt: skip
def test_a_jobset_is_as_its_status_says(tmp_path, cluster, status, state, reason):
    backend(tmp_path).submit(rendered(tmp_path))
    cluster.set_status("r1-1", **status)
    situation = api.situation_of(HANDLE)
    assert (situation.state, situation.reason, situation.starts_again) == (state, reason, status.get("restarts", 0))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]}, "0/3 nodes"),
        (
            {"containerStatuses": [{
                "name": "node", "image": "x", "imageID": "", "ready": False, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            }]},
            "ImagePullBackOff: no such image",
        ),
    ],
)  # fmt: skip
def test_a_pod_that_waits_says_why(tmp_path, cluster, status, said):
    backend(tmp_path).submit(rendered(tmp_path))
    cluster.set_status("r1-1", replicatedJobsStatus=[{"name": "nodes", "ready": 1}])
    for _ in range(2):
        cluster.add_pod("r1-1", "research", **status)
    situation = api.situation_of(HANDLE)
    assert (situation.state, situation.reason) == (JobState.PENDING, said)


def test_a_stop_leaves_pods_their_grace_and_a_kill_does_not(tmp_path, cluster):
    backend(tmp_path).submit(rendered(tmp_path))
    cluster.add_pod("r1-1", "research", phase="Running")
    api.delete(HANDLE)
    situation = api.situation_of(HANDLE)
    assert (situation.state, situation.reason) == (JobState.RUNNING, "is being deleted")
    api.kill(HANDLE)
    assert (cluster.jobsets, cluster.pods) == ({}, {})
    assert any("gracePeriodSeconds=0" in call for call in cluster.calls)
    assert api.situation_of(HANDLE).state is JobState.ENDED
    api.delete(HANDLE)  # what is gone is gone


def test_a_group_is_submitted_whole_or_not_at_all(tmp_path, cluster):
    backend(tmp_path).submit(rendered(tmp_path, "b"))
    with pytest.raises(Refused, match=r'Kubernetes: jobsets\.jobset\.x-k8s\.io "b-1" already exists'):
        backend(tmp_path).submit(rendered(tmp_path, "a", "b"))
    assert list(cluster.jobsets) == [("research", "b-1")]


def test_what_the_server_says_is_what_is_said(tmp_path, cluster):
    with pytest.raises(Refused, match='Kubernetes: namespaces "other" not found') as caught:
        backend(tmp_path).check(rendered(tmp_path, namespace="other"))
    assert caught.value.exit_code == 3


def test_without_a_server_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with kubernetes_server(tmp_path / "config"):
        pass
    situation = api.situation_of(HANDLE)
    assert situation.state is JobState.UNKNOWN
    assert "Kubernetes does not answer" in situation.reason
    assert not api.answers(None)
    (tmp_path / "config").unlink()
    with pytest.raises(ClusterError, match=r"no Kubernetes cluster is configured here: .*; set KUBECONFIG"):
        backend(tmp_path).check(rendered(tmp_path))
