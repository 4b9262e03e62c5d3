"""A run on Kubernetes: the client and a server that keeps JobSets, and this machine plays the nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from support.kubernetes_server import Cluster, kubernetes_server
from support.pods import Pods
from support.runs_for_tests import digests, launch, small_words, status, wait_for_step

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed; scripts/setup --dev does it")


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with kubernetes_server(tmp_path / "config", "default") as cluster:
        yield cluster


def test_a_jobset_that_loses_a_pod_goes_on_in_its_next_start(tmp_path, cluster, undisturbed):
    run = tmp_path / "runs/r1"
    settings = {"image": "train:1", "volume": "runs", "mount": tmp_path, "python": sys.executable, "gpus": "none"}
    words = [*small_words(1), "--nodes", "2", "--name", "r1", "--on", "kubernetes"]
    result = launch(*words, *(f"kubernetes.{k}={v}" for k, v in settings.items()), runs_dir=run.parent)
    assert result.returncode == 0, result.stderr
    jobset = cluster.jobsets["default", "r1-1"]
    assert status(run)["state"] == "PENDING"

    cluster.set_status("r1-1", replicatedJobsStatus=[{"name": "nodes", "ready": 2}])
    assert status(run)["state"] == "STARTING"
    with closing(Pods(jobset, 0)) as first:
        wait_for_step(run, 12)
        with first.paused():
            assert status(run)["state"] == "RUNNING"
        first.kill(1)
        assert first.codes() == [75, -9]  # which the policies of the JobSet start again, without counting

    cluster.set_status("r1-1", restarts=1, replicatedJobsStatus=[{"name": "nodes", "ready": 2}])
    with closing(Pods(jobset, 1)) as second:
        assert second.codes() == [0, 0]
    cluster.set_status("r1-1", conditions=[{"type": "Completed", "status": "True"}])
    state = status(run)
    assert [attempt["state"] for attempt in state["attempts"]] == ["LOST", "SUCCEEDED"]
    assert digests(run) == digests(undisturbed(2))


def test_a_cancelled_jobset_is_deleted_and_stays_cancelled(tmp_path, cluster):
    run = tmp_path / "runs/r1"
    settings = {"image": "train:1", "volume": "runs", "mount": tmp_path, "gpus": "none"}
    words = [*small_words(1), "--name", "r1", "--on", "kubernetes"]
    launch(*words, *(f"kubernetes.{k}={v}" for k, v in settings.items()), runs_dir=run.parent)
    assert launch("cancel", "r1", runs_dir=run.parent).returncode == 0
    assert cluster.jobsets == {}
    assert status(run)["state"] == "CANCELLED"
