"""The text of a batch job. Nothing in it is a person's free text but `slurm.setup` and `slurm.lines`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job import FINAL_CODES, Job
from cluster.slurm import container
from cluster.slurm.settings import SlurmSettings

CPUS_PER_GPU = 4
FOLDER = "slurm"  # of a run: what is submitted, and what the batch script prints

_MISSING = "is not visible on this node; --runs-dir must be on a file system that all share"

_END = f"""\
code=$?
case $code in 0|{"|".join(map(str, FINAL_CODES))}) exit $code ;; esac
# Preempted, out of time, or lost. Slurm starts the job again by itself if it has ended it; and not if somebody has
# cancelled it. In the time before it would end it, only this does. A job that gets no further ends with 93 above.
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
control() {{ scontrol "$@" || srun --overlap --ntasks-per-node=1 scontrol "$@"; }}  # here, or where it is installed
state=$(control show job --oneliner "$job")
if [[ -z $state ]]; then
  echo "scontrol works on no node, so the job cannot be started again: use launch resume where Slurm can be reached"
elif [[ $state == *" JobState=RUNNING "* ]]; then
  control requeue "$job"
fi
exit $code
"""


def cpus_per_node(settings: SlurmSettings, *, ranks_per_node: int, has_gpus: bool) -> int:
    return ranks_per_node * (settings.cpus_per_rank or (CPUS_PER_GPU if has_gpus else 1))


def batch_script(jobs: Sequence[Job], settings: SlurmSettings) -> str:
    """One task per node, which submitit hands the payload. Several jobs are an array, and differ in their run alone.

    Raises ClusterError.
    """
    job = jobs[0]
    for path in (*(job.run_folder for job in jobs), Path(sys.executable)):
        if not str(path).isprintable() or set(str(path)) & {"\\", "%"}:
            raise ClusterError(f"{str(path)!r} has a character that Slurm cannot have in a path; use another folder")
    topology = job.topology
    cpus = cpus_per_node(settings, ranks_per_node=topology.ranks_per_node, has_gpus=topology.has_gpus)
    options = [*_options(job, settings, cpus), *([f"--array=0-{len(jobs) - 1}"] if len(jobs) > 1 else [])]
    if settings.container is not None:
        container.check_mountable(job.run_folder for job in jobs)
    exports = _exports(job.environment)
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in [*options, *settings.lines]),
        "",
        *_choice_of_run([job.run_folder for job in jobs]),
        f'code="$run_folder"/{job.folder.relative_to(job.run_folder)}',
        f'missing="launch: $code {_MISSING}"',
        'cd "$code" || { scontrol update jobid=$SLURM_JOB_ID comment="$missing"; exit 2; }',
        f'exec >>"$run_folder"/{FOLDER}/batch.log 2>&1',
        "# The ranks save when Slurm signals the end. Bash would die of the signal, and they of its death.",
        "trap : TERM",
        *settings.setup,
        *(f"export {name}={text}" for name, text in exports.items()),
        _task(settings, cpus, list(exports), has_gpus=topology.has_gpus),
    ]
    return "\n".join(lines) + "\n" + _END


def _task(settings: SlurmSettings, cpus: int, names: Sequence[str], *, has_gpus: bool) -> str:
    """The line that starts the tasks; `names` are the variables that they need."""
    # Of the job, one task a node would make Slurm content with the least number of nodes: it counts tasks.
    srun = "srun --ntasks-per-node=1 --unbuffered --open-mode=append --kill-on-bad-exit=0 --wait=60"
    options = f'--cpus-per-task={cpus} --output="$run_folder"/{FOLDER}/node-%t.log'
    python = f"{shlex.quote(settings.python or sys.executable)} -u -m submitit.core._submit"
    before = container.command_before(settings, names, has_gpus=has_gpus)
    return f'{srun} {options}{container.options_of_srun(settings)} {before}{python} "$run_folder"/{FOLDER}'


def _choice_of_run(folders: Sequence[Path]) -> Iterator[str]:
    quoted = [shlex.quote(str(folder)) for folder in folders]
    if len(quoted) == 1:
        yield f"run_folder={quoted[0]}"
    else:
        yield f"run_folders=({' '.join(quoted)})"
        yield "run_folder=${run_folders[SLURM_ARRAY_TASK_ID]}"


def _exports(environment: Mapping[str, str]) -> dict[str, str]:
    """The values as the shell is told them, by name."""
    exports = {name: shlex.quote(value) for name, value in sorted(environment.items())}
    before = exports.pop("PYTHONPATH", "")
    return {**exports, "PYTHONPATH": f'"$code"{":" if before else ""}{before}', "SUBMITIT_EXECUTOR": "slurm"}


def _nodes(most: int, least: int | None) -> str:
    if least is not None and least > most:
        raise ClusterError(f"slurm.least_nodes={least} is more than --nodes {most}; use at most that")
    return str(most) if least is None else f"{least}-{most}"


def _options(job: Job, settings: SlurmSettings, cpus: int) -> Iterator[str]:
    """In the order of the reader's interest."""
    topology = job.topology
    yield f"--job-name={re.sub('[^A-Za-z0-9._-]', '-', job.name)}"  # a run folder may have been renamed to anything
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
