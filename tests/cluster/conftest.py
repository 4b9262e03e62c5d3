from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.campaign import Course
from support.phases import Schedule
from support.sharing import shared_folder
from support.slurm import Cluster, start_cluster, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    if reason := why_not():
        assert "CI" not in os.environ, f"the tests on Slurm may not be skipped here: {reason}"
        pytest.skip(reason)
    cluster = start_cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """What all runs on Slurm train, and the same on one machine, undisturbed."""
    return Course(shared_folder(tmp_path_factory) / "course", Schedule(steps=120, save_every=5, evaluate_every=400))
