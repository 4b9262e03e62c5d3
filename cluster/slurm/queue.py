"""What Slurm's controller says. Accounting is not asked: it may be absent, and says NODE_FAIL of jobs that go on."""

from __future__ import annotations

import os
import re
import subprocess

from cluster.errors import ClusterError, Refused
from cluster.job import JobState, Situation

_SECONDS = 30.0
_HURRY_SECONDS = 5.0  # for a job that is about to be ended
_PATIENCE_SECONDS = 3.0  # without a configuration Slurm's commands look for one in the name service
_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


def answers() -> bool:
    """Whether there is a Slurm that this machine can submit to."""
    try:
        _run("sinfo", "--noheader", seconds=_PATIENCE_SECONDS)
    except ClusterError:
        return False
    return True


def situation_of(job: str) -> Situation:
    """Of a job by its id; one that the controller has forgotten has ended."""
    try:
        said = _run("scontrol", "show", "job", "--oneliner", job)
    except SlurmSilent as error:
        return Situation(state=JobState.UNKNOWN, reason=str(error))
    except ClusterError:
        return Situation(state=JobState.ENDED, reason="Slurm has forgotten the job")
    found = dict(re.findall(r"(\w+)=(\S*)", said))
    word, again = found.get("JobState", ""), int(found.get("Restarts", 0))
    state = _state(word)
    comment = re.search(r"Comment=(launch: .*?) [A-Z]\w+=", said)  # what the batch script could tell in no other way
    words = [word if word != state else "None", found.get("Reason", "None"), comment[1] if comment else "None"]
    return Situation(state=state, reason=" ".join(word for word in words if word != "None"), starts_again=again)


def job_fields(job: str) -> dict[str, str]:
    """What the controller says of a job, field by field, with times in seconds since the epoch. Raises ClusterError."""
    said = _run("scontrol", "show", "job", "--oneliner", job, seconds=_HURRY_SECONDS, SLURM_TIME_FORMAT="%s")
    return dict(re.findall(r"(\w+)=(\S*)", said))


def kill_wait_seconds() -> int:
    """From SIGTERM to SIGKILL, when Slurm ends a job. Raises ClusterError."""
    said = _run("scontrol", "show", "config", seconds=_HURRY_SECONDS)
    found = re.search(r"^KillWait\s*=\s*(\d+) sec", said, re.MULTILINE)
    if found is None:
        raise SlurmSilent("scontrol show config has no KillWait")
    return int(found[1])


def _state(word: str) -> JobState:
    if word in _PENDING:
        return JobState.PENDING
    return JobState.ENDED if word in _ENDED else JobState.RUNNING


class SlurmSilent(ClusterError):
    """Slurm cannot be asked."""

    exit_code = 3


def cancel(job: str) -> None:
    """Pending jobs go at once; running ones are told by SIGTERM, and have KillWait to save."""
    _run("scancel", job)


def end(job: str) -> None:
    _run("scancel", "--signal=KILL", "--full", job)
    cancel(job)


def test_only(script: str) -> None:
    """Have Slurm look at a batch script without running it. Raises Refused with what Slurm says."""
    _run("sbatch", "--test-only", stdin=script)


def has_gpus(partition: str | None) -> bool:
    """Whether the nodes of a partition (the default one for None) have GPUs."""
    said = _run("sinfo", "--noheader", "--format=%P|%G")
    for line in said.splitlines():
        name, _, resources = line.partition("|")
        if (name.rstrip("*") == partition if partition else name.endswith("*")) and "gpu" in resources:
            return True
    return False


def _run(*command: str, stdin: str = "", seconds: float = _SECONDS, **variables: str) -> str:
    """What the command prints. Raises SlurmSilent when it is missing or gets no answer, and Refused when it fails."""
    environment = {**os.environ, "LC_ALL": "C", **variables}
    try:
        result = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise SlurmSilent(f"{command[0]} is not on this machine; use a machine that can submit to Slurm") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilent(f"Slurm does not answer within {seconds:.0f} s; try again later") from error
    if result.returncode == 0:
        return result.stdout
    text = _in_short(result.stderr)
    if re.search(r"Unable to contact slurm controller|Connection refused|Could not establish a config", text):
        raise SlurmSilent(f"Slurm does not answer: {text}; try again later")
    raise Refused(f"{command[0]}: {text}")


def _in_short(text: str) -> str:
    """In one line, without the command's own name and rank of trouble, which Slurm repeats in each of its own."""
    return re.sub(r"\b(sbatch|scontrol|scancel|sinfo): ((error|fatal): )?", "", " ".join(text.split()))
