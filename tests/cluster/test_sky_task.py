"""The task of a job for SkyPilot, and what may get into it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import sky
from support.jobs import JOB
from support.runs_for_tests import REPOSITORY

from cluster.errors import ClusterError
from cluster.job import Job, Submission
from cluster.sky.backend import SkyBackend
from cluster.sky.settings import SkySettings

GOLDEN = Path(__file__).with_name("golden") / "sky.yaml"
ONE = replace(JOB, topology=replace(JOB.topology, nodes=1))
WHOLE = {
    "accelerators": "H100", "cloud": "aws", "region": "us-east-1", "cpus": "96+", "memory": "512+", "disk": "512",
    "image": "docker:ghcr.io/acme/train:1", "setup": ["nvidia-smi"], "secrets": ["AWS_SECRET_ACCESS_KEY"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_fetched(tmp_path, monkeypatch):
    """A machine on which SkyPilot was never used, and on which the launcher needs two packages."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=2.13,<2.14", "pyyaml>=6", 'ruff; extra == "dev"'])
    monkeypatch.setattr(metadata, "version", {"torch": "2.13.0+cpu", "pyyaml": "6.0.3"}.__getitem__)


def rendered(job: Job = ONE, **settings: object) -> Submission:
    return SkyBackend(settings).render([job])


def task(job: Job = ONE, **settings: object) -> dict[str, Any]:
    (request,) = rendered(job, **settings).requests
    return yaml.safe_load(request.text)


def test_a_task_is_this():
    (request,) = rendered(**WHOLE).requests
    assert request.text == GOLDEN.read_text()
    assert request.command == (
        "sky", "jobs", "launch", "--yes", "--detach-run", "--secret", "AWS_SECRET_ACCESS_KEY",
        "/shared/my runs/r1/sky/r1-1.yaml",
    )  # fmt: skip


def test_an_interpreter_that_has_everything_is_installed_nothing():
    text = task(python="/opt/venv/bin/python")
    assert text["setup"] == "set -e\n"
    assert "exec /opt/venv/bin/python -m launcher resume" in text["run"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accelerators": "H10"}, r"sky.accelerators='H10' is no accelerator of SkyPilot; did you mean H100\?"),
        ({"accelerators": "H100:8"}, "--gpus says how many"),
        ({"cloud": "gcp", "region": "us-cental1"}, r"is no region of gcp; did you mean us-central1\?"),
        ({"region": "us-east-1"}, "needs its cloud; give sky.cloud: aws, azure, gcp"),
        ({"acelerators": "H100"}, r"did you mean sky\.accelerators\?"),
        ({"use_spot": "yes"}, "is not true or false"),
        ({"disk": "big"}, "is not a whole number"),
    ],
)
def test_what_cannot_be_a_task_is_refused(settings, said):
    with pytest.raises(ClusterError, match=said):
        rendered(**settings)


def test_the_catalogue_that_skypilot_has_fetched_is_believed(tmp_path):
    folder = tmp_path / ".sky/catalogs/v10"
    for name, row in (("common/accelerators.csv", "AcceleratorName\nX900\n"), ("aws/vms.csv", "Region\nmoon-1\n")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(row)
    resources = task(accelerators="X900", cloud="aws", region="moon-1")["resources"]
    assert (resources["accelerators"], resources["infra"]) == ("X900:8", "aws/moon-1")
    with pytest.raises(ClusterError, match="there are: X900"):
        rendered(accelerators="H100")


def test_checkpoints_on_a_disk_are_refused():
    with pytest.raises(ClusterError, match=r"needs the checkpoints in a bucket.*; give --checkpoints s3://"):
        rendered(replace(ONE, checkpoints="/shared/my runs/r1/checkpoints"))


def test_several_nodes_are_refused():
    with pytest.raises(ClusterError, match=r"--nodes 2 is more than --on sky has \(1\)"):
        SkyBackend({}).topology(2, 8)


def test_a_secret_is_named_and_never_shown(tmp_path, monkeypatch):
    sky.install(tmp_path / "sky")
    monkeypatch.setenv("PATH", f"{tmp_path}/sky/bin")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    backend = SkyBackend(WHOLE)
    submission = backend.render([ONE])
    backend.check(submission)
    assert "hunter2" not in str(submission)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ClusterError, match="AWS_SECRET_ACCESS_KEY, which is not set here; export it"):
        backend.check(submission)


def test_the_value_of_a_secret_in_the_place_of_its_name_is_not_repeated():
    with pytest.raises(ClusterError) as caught:
        SkyBackend({"secrets": ["wJalrXUtnFEMI/K7MDENG"]})
    assert "wJalr" not in str(caught.value)


@given(name=st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=20))
def test_the_folder_of_a_run_is_refused_or_is_one_word_to_the_shell(name):
    folder = Path("/runs") / name
    try:
        (last,) = task(replace(ONE, run_folder=folder))["run"].splitlines()[-1:]
    except ClusterError:
        return
    printed = subprocess.run(
        ["bash", "-c", last.replace("exec ", "printf '%s\\n' ", 1)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[-1].endswith(f"/launch/{name}")


def test_the_settings_of_a_backend_make_it_again():
    backend = SkyBackend(WHOLE)
    assert SkyBackend(backend.settings()).render([ONE]) == backend.render([ONE])


def test_the_example_of_a_profile_has_only_settings_that_exist():
    content = yaml.load((REPOSITORY / "profiles/example-sky.yaml").read_text(), Loader=yaml.BaseLoader)
    assert SkySettings.from_mapping(content["sky"]).use_spot
