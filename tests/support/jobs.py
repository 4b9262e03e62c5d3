"""A job that every target is asked to render."""

from __future__ import annotations

from pathlib import Path

from cluster.job import Job
from cluster.topology import Topology

JOB = Job(
    name="r1",
    attempt=1,
    command=(),
    entry="launcher.on_node:train",
    run_folder=Path("/shared/my runs/r1"),
    folder=Path("/shared/my runs/r1/code"),
    logs=Path("/shared/my runs/r1/attempts/0001/logs"),
    environment={"PYTHONPATH": "/home/me/own modules", "OMP_WAIT_POLICY": "passive"},
    topology=Topology(nodes=2, ranks_per_node=8, has_gpus=True),
    checkpoints="s3://bucket/prefix/r1",
    resume=("resume", "--on", "local", "--takeover", "--gpus", "8", "--hang-seconds", "20"),
    grace_seconds=None,
)
