"""The task of a job, as data.

A machine is sent what makes the run: its record, recipe and code. There it goes on as a run of that machine, from the
newest commit in the bucket; its exit code 75 has SkyPilot start it again, on another machine if this one is gone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from cluster.errors import ClusterError
from cluster.job import Job
from cluster.sky.settings import SkySettings

_PROJECT = "launch-training"
_RESUMABLE_CODE = 75
_SENT = ("run.json", "config.yaml", "code")
_ENVIRONMENT = "~/launch/environment"
_PLAIN = re.compile(r"[A-Za-z0-9_.+@=:,/-]*")


def task(job: Job, settings: SkySettings) -> dict[str, Any]:
    """Raises ClusterError."""
    if "://" not in job.checkpoints:
        raise ClusterError(
            "--on sky needs the checkpoints in a bucket, because a machine that is taken away takes its disks along; "
            "give --checkpoints s3://BUCKET/PREFIX"
        )
    content: dict[str, Any] = {
        "name": job.label,
        "num_nodes": job.topology.nodes,
        "resources": _resources(job, settings),
        "envs": dict(sorted(job.environment_elsewhere().items())),
    }
    if settings.secrets:
        content["secrets"] = dict.fromkeys(settings.secrets)
    run_folder = f"~/launch/{job.run_folder.name}"
    content["file_mounts"] = {f"{run_folder}/{name}": str(job.run_folder / name) for name in _SENT}
    content["setup"] = "\n".join(["set -e", *settings.setup, *_installation(settings)]) + "\n"
    content["run"] = "\n".join(_command(job, settings, run_folder)) + "\n"
    return content


def _resources(job: Job, settings: SkySettings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if settings.cloud is not None:
        found["infra"] = "/".join(filter(None, (settings.cloud, settings.region)))
    if settings.accelerators is not None:
        found["accelerators"] = f"{settings.accelerators}:{job.topology.ranks_per_node}"
    wanted = {"cpus": settings.cpus, "memory": settings.memory, "disk_size": settings.disk, "image_id": settings.image}
    found |= {name: value for name, value in wanted.items() if value is not None}
    found["use_spot"] = settings.use_spot
    # A machine that is taken away does not count, and neither does this code; whatever else fails is not started again.
    found["job_recovery"] = {
        "strategy": settings.strategy,
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [_RESUMABLE_CODE],
    }
    return found


def _installation(settings: SkySettings) -> Iterator[str]:
    """Done again on each machine, and once more on one that has it all: that changes nothing."""
    if settings.python is not None:
        return
    yield f"test -x {_ENVIRONMENT}/bin/python || python3 -m venv {_ENVIRONMENT}"
    yield f"{_ENVIRONMENT}/bin/python -m pip install --quiet {shlex.join(_packages())}"


def _packages() -> list[str]:
    """What the launcher needs, in the versions that it has here."""
    needed = [
        re.match(r"[A-Za-z0-9._-]+", line) for line in metadata.requires(_PROJECT) or () if "extra ==" not in line
    ]
    names = sorted(found[0] for found in needed if found is not None)
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _command(job: Job, settings: SkySettings, run_folder: str) -> Iterator[str]:
    if not _PLAIN.fullmatch(run_folder.removeprefix("~")):
        raise ClusterError(f"{job.run_folder.name!r} cannot be a folder's name in a task of SkyPilot; rename the run")
    yield f"cd {run_folder}/code"
    yield 'export PYTHONPATH="$PWD"'
    yield f"exec {settings.python or f'{_ENVIRONMENT}/bin/python'} -m launcher {shlex.join(job.resume)} {run_folder}"
