"""The JobSet of a job, and what may get into it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import JOB
from support.runs_for_tests import REPOSITORY

from cluster.errors import ClusterError
from cluster.job import Job, Submission
from cluster.kubernetes.backend import KubernetesBackend
from cluster.kubernetes.settings import KubernetesSettings

GOLDEN = Path(__file__).with_name("golden") / "kubernetes.yaml"
NEEDED = {"image": "ghcr.io/acme/train:1", "volume": "runs"}
WHOLE = {
    **NEEDED, "python": "/venv/bin/python", "user": "1000:100", "namespace": "research", "context": "gke_acme",
    "queue": "spot-h100", "cpus_per_rank": "12", "memory": "900Gi", "spot": "true", "provider": "gke",
    "node_selector": ["cloud.google.com/gke-accelerator=nvidia-h100-80gb"], "secrets": ["bucket-key"],
    "service_account": "trainer",
}  # fmt: skip


def rendered(*jobs: Job, **settings: object) -> Submission:
    return KubernetesBackend({**NEEDED, **settings}).render(jobs or [JOB])


def manifest(job: Job = JOB, **settings: object) -> dict[str, Any]:
    (request,) = rendered(job, **settings).requests
    return yaml.safe_load(request.text)


def pod(job: Job = JOB, **settings: object) -> dict[str, Any]:
    (nodes,) = manifest(job, **settings)["spec"]["replicatedJobs"]
    return nodes["template"]["spec"]["template"]["spec"]


def test_a_jobset_is_this():
    (request,) = KubernetesBackend(WHOLE).render([JOB]).requests
    assert request.text == GOLDEN.read_text()
    assert request.path == JOB.run_folder / "kubernetes/r1-1.yaml"


def test_a_jobset_is_one_for_the_schema_of_jobsets():
    """The models drop what they do not know: a field with a slip of the pen does not come back."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    content = yaml.safe_load(GOLDEN.read_text())
    assert models.JobsetV1alpha2JobSet.from_dict(content).to_dict() == content
    content["spec"]["failurePolicy"]["rules"][0]["onJobFailureReason"] = []
    assert models.JobsetV1alpha2JobSet.from_dict(content).to_dict() != content


@pytest.mark.parametrize(
    ("provider", "wanted", "given"), [("gke", None, 15), ("gke", 10, 10), ("eks", 300, 120), ("aks", None, 30)]
)
def test_a_pod_on_a_spot_node_is_promised_what_the_provider_gives(provider, wanted, given):
    job = replace(JOB, grace_seconds=wanted)
    spec = pod(job, spot="true", provider=provider)
    assert spec["terminationGracePeriodSeconds"] == given
    assert {"name": "LAUNCH_GRACE_SECONDS", "value": str(given)} in spec["containers"][0]["env"]
    warnings = rendered(job, spot="true", provider=provider).warnings
    assert len(warnings) == (given < (wanted or 120))
    assert all(f"at most {given} s" in warning for warning in warnings)


def test_a_pod_on_another_node_gets_what_was_asked_for():
    assert pod(replace(JOB, grace_seconds=900))["terminationGracePeriodSeconds"] == 900
    assert pod()["terminationGracePeriodSeconds"] == 120
    assert rendered(replace(JOB, grace_seconds=900)).warnings == ()


def test_ranks_on_cpus_ask_for_no_gpu():
    job = replace(JOB, topology=replace(JOB.topology, has_gpus=False))
    spec = pod(job, gpus="none")
    assert spec["containers"][0]["resources"] == {"requests": {"cpu": "8"}}
    assert "tolerations" not in spec


def test_each_run_of_a_group_is_a_jobset_of_its_own():
    folders = [Path(f"/shared/g-{index}") for index in range(2)]
    jobs = [replace(JOB, name=f"g-{n}", run_folder=f, folder=f / "code") for n, f in enumerate(folders)]
    submission = rendered(*jobs)
    assert [request.path for request in submission.requests] == [
        Path("/shared/g-0/kubernetes/g-0-1.yaml"), Path("/shared/g-1/kubernetes/g-1-1.yaml"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": None}, "needs kubernetes.image"),
        ({"volume": None}, "needs kubernetes.volume"),
        ({"mount": "/data"}, "is not on the volume that pods have at /data; use a --runs-dir below that"),
        ({"spot": "true"}, r"kubernetes.spot=true needs kubernetes.provider, which .*: gke, eks, karpenter, aks"),
        ({"provider": "gcp"}, "kubernetes.provider='gcp' is not one of gke, eks, karpenter, aks"),
        ({"imgae": "x"}, r"did you mean kubernetes\.image\?"),
        ({"memory": "200G B"}, "is not an amount of memory"),
        ({"node_selector": "gpu"}, "must be LABEL=VALUE"),
    ],
)
def test_what_cannot_be_a_jobset_is_refused(settings, said):
    with pytest.raises(ClusterError, match=said):
        rendered(**settings)


@given(
    value=st.text(max_size=20) | st.sampled_from(["$(LAUNCH_JOB)", "$$(X)", "a: b", "- x", "{}", "null", "\x85", "'"])
)
def test_a_value_of_the_environment_arrives_as_it_is(value):
    env = pod(replace(JOB, environment={"X": value}))["containers"][0]["env"]
    (found,) = [variable["value"] for variable in env if variable["name"] == "X"]
    assert found.replace("$$", "$") == value


@given(name=st.text(max_size=80))
def test_any_name_of_a_run_gives_a_name_that_kubernetes_takes(name):
    made = manifest(replace(JOB, name=name))["metadata"]["name"]
    assert made[0].isalpha()
    assert made.isascii()
    assert made.replace("-", "").isalnum()
    assert made == made.lower()
    assert len(f"{made}-nodes-0-999999") <= 63


def test_the_settings_of_a_backend_make_it_again():
    backend = KubernetesBackend(WHOLE)
    assert KubernetesBackend(backend.settings()).render([JOB]) == backend.render([JOB])


def test_the_example_of_a_profile_has_only_settings_that_exist():
    content = yaml.load((REPOSITORY / "profiles/example-kubernetes.yaml").read_text(), Loader=yaml.BaseLoader)
    assert KubernetesSettings.from_mapping(content["kubernetes"]).spot
