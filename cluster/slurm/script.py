"""The text of a batch job. Nothing in it is a person's free text but `slurm.setup` and `slurm.lines`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job import Job
from cluster.slurm.settings import SlurmSettings

CPUS_PER_GPU = 4
FOLDER = "slurm"  # of a run: what is submitted, and what the batch script prints

# By these a run has ended, and need not be started again: see the exit codes of `launch`.
_FINAL_CODES = "0|1|2|4|93"

_END = f"""\
code=$?
case $code in {_FINAL_CODES}) exit $code ;; esac
# Preempted, out of time, or lost. Slurm starts the job again by itself if it has ended it; and not if somebody has
# cancelled it. In the time before it would end it, only this does.
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
if ! state=$(scontrol show job --oneliner "$job"); then
  echo "scontrol does not work here, so the job cannot be started again: use launch resume where Slurm can be reached"
elif [[ $state == *" JobState=RUNNING "* ]]; then
  scontrol requeue "$job"
fi
exit $code
"""


def cpus_per_node(settings: SlurmSettings, *, ranks_per_node: int, has_gpus: bool) -> int:
    return ranks_per_node * (settings.cpus_per_rank or (CPUS_PER_GPU if has_gpus else 1))


def batch_script(job: Job, settings: SlurmSettings) -> str:
    """One task per node, which submitit hands the payload. Raises ClusterError."""
    for path in (job.run_folder, job.folder, job.logs, Path(sys.executable)):
        if not str(path).isprintable() or set(str(path)) & {"\\", "%"}:
            raise ClusterError(f"{str(path)!r} has a character that Slurm cannot have in a path; use another folder")
    topology = job.topology
    cpus = cpus_per_node(settings, ranks_per_node=topology.ranks_per_node, has_gpus=topology.has_gpus)
    folder, code = job.run_folder / FOLDER, shlex.quote(str(job.folder))
    missing = f"launch: {job.folder} is not visible on this node; --runs-dir must be on a file system that all share"
    # Of the job it would make Slurm content with the least number of nodes: it counts tasks.
    task = [
        "srun", "--ntasks-per-node=1", "--unbuffered", "--open-mode=append", "--kill-on-bad-exit=0", "--wait=60",
        f"--cpus-per-task={cpus}", f"--output={job.logs}/node-%t.log",
        sys.executable, "-u", "-m", "submitit.core._submit", str(folder),
    ]  # fmt: skip
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(job, settings, cpus)),
        "",
        f"cd {code} || {{ scontrol update jobid=$SLURM_JOB_ID comment={shlex.quote(missing)}; exit 2; }}",
        f"exec >>{shlex.quote(str(folder / 'batch.log'))} 2>&1",
        # Without it bash would die of the signal that tells of the end, and the ranks of bash's death.
        "trap : TERM",
        *settings.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(job.environment.items())),
        "export SUBMITIT_EXECUTOR=slurm",
        shlex.join(task),
    ]
    return "\n".join(lines) + "\n" + _END


def _nodes(most: int, least: int | None) -> str:
    if least is not None and least > most:
        raise ClusterError(f"slurm.least_nodes={least} is more than --nodes {most}; use at most that")
    return str(most) if least is None else f"{least}-{most}"


def _options(job: Job, settings: SlurmSettings, cpus: int) -> Iterator[str]:
    """In the order of the reader's interest."""
    topology = job.topology
    yield f"--job-name={job.name}"
    yield f"--nodes={_nodes(topology.nodes, settings.least_nodes)}"
    yield f"--cpus-per-task={cpus}"
    if topology.has_gpus:
        kind = f"{settings.gpu_type}:" if settings.gpu_type else ""
        spelling = "gres=gpu:" if settings.gpus == "gres" else "gpus-per-node="
        yield f"--{spelling}{kind}{topology.ranks_per_node}"
    for name in ("account", "partition", "qos", "constraint", "reservation", "exclude", "time"):
        if (value := getattr(settings, name)) is not None:
            yield f"--{name}={shlex.quote(value)}"
    if settings.memory is not None:
        yield f"--mem={settings.memory}"
    if settings.exclusive:
        yield "--exclusive"
    yield f"--signal={settings.signal}@{settings.signal_seconds}"
    yield "--requeue"
    yield "--open-mode=append"
    yield "--output=/dev/null"  # the run folder may be missing on the node, and then nothing would tell of it
    yield from settings.lines
