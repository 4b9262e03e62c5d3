"""What is asked of SkyPilot, through its command `sky`, which may be installed anywhere on the PATH."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import ClusterError, Refused
from cluster.job import JobState, Situation

_SECONDS = 120.0  # it may have to start its own server first
_LAUNCH_SECONDS = 1800.0  # the first job of all waits for the machine of the controller
_STATES = {
    "PENDING": JobState.PENDING, "SUBMITTED": JobState.PENDING, "STARTING": JobState.PENDING,
    "RECOVERING": JobState.PENDING, "RUNNING": JobState.RUNNING, "WINDING_DOWN": JobState.RUNNING,
    "CANCELLING": JobState.RUNNING,
}  # fmt: skip
_MISSING = "sky is not on this machine; install SkyPilot in an environment of its own, and put its sky on the PATH"
_ALL_ENDED = "No in-progress managed jobs"
_CONTROLLER_STOPPED = "no managed job is in progress; sky jobs queue --refresh tells how this one ended"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_GOOD_ENDS = {"SUCCEEDED", "CANCELLED"}


class SkySilent(ClusterError):
    """SkyPilot cannot be asked."""

    exit_code = 3


def is_installed() -> bool:
    return shutil.which("sky") is not None


def check_installed() -> None:
    """Raises SkySilent."""
    if not is_installed():
        raise SkySilent(_MISSING)


def launch(command: tuple[str, ...]) -> None:
    """Raises Refused with what SkyPilot says, and SkySilent."""
    _run(*command, seconds=_LAUNCH_SECONDS)


def cancel(name: str) -> None:
    _run("sky", "jobs", "cancel", "--yes", "--name", name)


def log_lines(name: str, *, follow: bool) -> Iterator[str]:
    """As they come, from the first one on. Raises SkySilent."""
    command = ("sky", "jobs", "logs", "--name", name, "--tail", "0", "--follow" if follow else "--no-follow")
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=nothing, stdout=pipe, text=True, errors="replace")
    except FileNotFoundError as error:
        raise SkySilent(_MISSING) from error
    with process:
        assert process.stdout is not None
        yield from (line.removesuffix("\n") for line in process.stdout)


def situation_of(name: str) -> Situation:
    """Of the newest job of this name; one that SkyPilot has forgotten has ended."""
    try:
        said = _run("sky", "jobs", "queue", "--all", "--verbose", "--output", "json")
        jobs = json.loads(re.sub(r"\A([^\[].*\n)*", "", said))  # the first lines may say that its server was started
    except (ClusterError, ValueError) as error:
        if _ALL_ENDED in str(error):
            return Situation(state=JobState.ENDED, reason=_CONTROLLER_STOPPED)
        return Situation(state=JobState.UNKNOWN, reason=str(error))
    mine = [job for job in jobs if job.get("job_name") == name]
    if not mine:
        return Situation(state=JobState.ENDED, reason="SkyPilot has no such job any more")
    return _situation(max(mine, key=lambda job: int(job["job_id"])))


def _situation(job: Mapping[str, Any]) -> Situation:
    word = str(job["status"])
    said = " ".join(filter(None, (job.get("failure_reason"), job.get("details"), job.get("infra"))))
    state = _STATES.get(word, JobState.ENDED)
    ended_as = "" if state is not JobState.ENDED else word if word in _GOOD_ENDS else "FAILED"
    return Situation(
        state=state, reason=f"{word}: {said}" if said else word, starts_again=int(job.get("recovery_count") or 0),
        ended_as=ended_as, rented_seconds=_seconds(job.get("job_duration")),
        cloud=str(job["cloud"]).lower() if job.get("cloud") else None,
    )  # fmt: skip


def _seconds(duration: object) -> float | None:
    return float(duration) if isinstance(duration, int | float) else None


def _run(*command: str, seconds: float = _SECONDS) -> str:
    """What the command prints. Raises SkySilent when it is missing or gets no answer, and Refused when it fails."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise SkySilent(_MISSING) from error
    except subprocess.TimeoutExpired as error:
        raise SkySilent(f"{' '.join(command[:3])} does not answer within {seconds:.0f} s; try again later") from error
    output, errors = (_COLOUR.sub("", text) for text in (result.stdout, result.stderr))
    if result.returncode == 0:
        return output
    said = (errors.strip() or output.strip() or f"it exits with {result.returncode}").splitlines()[-1]
    raise Refused(f"{' '.join(command[:3])}: {said}")
