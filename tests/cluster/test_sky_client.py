"""What SkyPilot says of a job: a stand-in answers, as there is no account of a cloud to try it with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import sky

from cluster.errors import Refused
from cluster.job import JobState
from cluster.sky import client


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    sky.install(tmp_path / "sky")
    monkeypatch.setenv("PATH", f"{tmp_path}/sky/bin{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "sky"


@pytest.mark.parametrize(
    ("status", "state", "ended_as"),
    [
        ("PENDING", JobState.PENDING, ""), ("STARTING", JobState.PENDING, ""), ("RUNNING", JobState.RUNNING, ""),
        ("RECOVERING", JobState.PENDING, ""), ("CANCELLING", JobState.RUNNING, ""),
        ("SUCCEEDED", JobState.ENDED, "SUCCEEDED"), ("CANCELLED", JobState.ENDED, "CANCELLED"),
        ("FAILED", JobState.ENDED, "FAILED"), ("FAILED_SETUP", JobState.ENDED, "FAILED"),
        ("FAILED_NO_RESOURCE", JobState.ENDED, "FAILED"),
    ],
)  # fmt: skip
def test_a_job_is_as_skypilot_says(folder, status, state, ended_as):
    sky.set_jobs(folder, {"status": "FAILED", "job_id": 3}, {"status": status}, {"job_name": "other"})
    situation = client.situation_of("r1-1")
    assert (situation.state, situation.ended_as, situation.starts_again) == (state, ended_as, 2)
    assert situation.reason == f"{status}: AWS (us-east-1a)"


def test_a_job_that_skypilot_does_not_know_has_ended(folder):
    assert client.situation_of("r1-1").reason == client._CONTROLLER_STOPPED
    sky.set_jobs(folder)
    situation = client.situation_of("r1-1")
    assert (situation.state, situation.ended_as) == (JobState.ENDED, "")


def test_without_skypilot_nobody_knows(folder):
    (folder / "bin/sky").unlink()
    situation = client.situation_of("r1-1")
    assert situation.state is JobState.UNKNOWN
    assert "put its sky on the PATH" in situation.reason


def test_what_skypilot_says_last_is_why_it_refuses(folder):
    (folder / "no-account").touch()
    with pytest.raises(Refused) as caught:
        client.launch(("sky", "jobs", "launch", "--yes", "--detach-run", "r1-1.yaml"))
    said = "sky.exceptions.NoCloudAccessError: Cloud access is not set up. Run: sky check"
    assert (str(caught.value), caught.value.exit_code) == (f"sky jobs launch: {said}", 3)
