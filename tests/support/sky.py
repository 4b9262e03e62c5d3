"""A stand-in for SkyPilot's command `sky`: it notes what it was asked, and answers as 0.14.1 does.

    sky.py FOLDER ARGUMENT ...

FOLDER/jobs.json holds what `sky jobs queue` prints; a job that is launched is added to it, but where there is a file
FOLDER/no-account.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import yaml

# What one job is in the answer of `sky jobs queue --output json`: the fields of SkyPilot's own ManagedJobRecord, as
# 0.14.1 dumps it, of those that are not null.
RECORD = {
    "task_job_id": 7, "job_id": 7, "task_id": 0, "job_name": "r1-1", "task_name": "r1-1", "job_duration": 412.0,
    "workspace": "default", "status": "RECOVERING", "schedule_state": "ALIVE", "resources": "1x[H100:8][Spot]",
    "cluster_resources": "-", "cloud": "AWS", "region": "us-east-1", "zone": "us-east-1a", "infra": "AWS (us-east-1a)",
    "recovery_count": 2, "details": None, "failure_reason": None, "submitted_at": 1795842000.0,
    "start_at": 1795842300.0, "end_at": None, "accelerators": {"H100": 8},
}  # fmt: skip
STARTING = (
    "\x1b[2mFailed to connect to SkyPilot API server at http://127.0.0.1:46580. Starting a local server.\x1b[0m\n"
    "\x1b[0m\x1b[32m✓ SkyPilot API server started. \x1b[0m\x1b[0m\n"
)
NO_ACCOUNT = "sky.exceptions.NoCloudAccessError: Cloud access is not set up. Run: \x1b[1msky check\x1b[0m"
NOTHING_RUNS = "sky.exceptions.ClusterNotUpError: No in-progress managed jobs."


def install(folder: Path) -> None:
    """Put it into `folder/bin`, for a PATH."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin/sky"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {shlex.quote(__file__)} {shlex.quote(str(folder))} "$@"\n')
    program.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def set_jobs(folder: Path, *jobs: dict[str, object]) -> None:
    (folder / "jobs.json").write_text(json.dumps([RECORD | job for job in jobs], indent=2))


def main(folder: Path, arguments: list[str]) -> int:
    with open(folder / "calls.jsonl", "a") as file:
        file.write(json.dumps(arguments) + "\n")
    match arguments[1]:
        case "queue":
            if not (folder / "jobs.json").exists():
                print(NOTHING_RUNS, file=sys.stderr)
                return 1
            print(STARTING + (folder / "jobs.json").read_text())
        case "launch":
            if (folder / "no-account").exists():
                print(STARTING)
                print(NO_ACCOUNT, file=sys.stderr)
                return 1
            name = yaml.safe_load(Path(arguments[-1]).read_text())["name"]
            set_jobs(folder, {"job_name": name, "status": "STARTING", "recovery_count": 0})
        case "cancel":
            set_jobs(folder, {"job_name": arguments[-1], "status": "CANCELLED"})
        case "logs":
            print("step 20/60  loss 3.912\nstep 40/60  loss 3.105")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
