"""A Slurm cluster as a backend: one job, one task per node, submitted through submitit."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from cluster.errors import ClusterError, Refused
from cluster.job import Job, Situation, Submission
from cluster.rent import Rent
from cluster.slurm import queue
from cluster.slurm.script import FOLDER, batch_script, cpus_per_node
from cluster.slurm.settings import SlurmSettings
from cluster.topology import Topology


class SlurmBackend:
    """Its handle is the job's id, which Slurm keeps when it starts the job again."""

    name = "slurm"
    needs_launcher = False
    resumes_there = True
    note = ""
    shares_run_folder = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = SlurmSettings.from_mapping(settings)
        self._unchecked: tuple[str, ...] = ()

    @property
    def stop_signals(self) -> tuple[signal.Signals, ...]:
        return signal.Signals[f"SIG{self._settings.signal}"], signal.SIGTERM

    def is_reachable(self) -> bool:
        return queue.answers()

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        """Asks Slurm whether the nodes have GPUs, unless the settings say it. Where it cannot be asked they have."""
        if self._settings.gpus is None:
            spelling = "gpus-per-node" if self._has_gpus() else "none"
            self._settings = replace(self._settings, gpus=spelling)
        return Topology(nodes=nodes, ranks_per_node=ranks_per_node or 1, has_gpus=self._settings.gpus != "none")

    def _has_gpus(self) -> bool:
        try:
            return queue.has_gpus(self._settings.partition)
        except queue.SlurmSilent:
            self._unchecked = ("whether the nodes of Slurm have GPUs: they are taken to; slurm.gpus says it",)
            return True

    def cores_per_node(self, topology: Topology) -> int:
        return cpus_per_node(self._settings, ranks_per_node=topology.ranks_per_node, has_gpus=topology.has_gpus)

    def notice(self) -> tuple[str, float] | None:
        """Before the time limit. How long a preempted job has is the site's choice."""
        return "slurm.signal_seconds", float(self._settings.signal_seconds)

    def rent(self) -> Rent:
        return Rent(accelerator=self._settings.gpu_type)

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, jobs: Sequence[Job]) -> Submission:
        folder = jobs[0].run_folder / FOLDER
        return Submission(
            command=("sbatch",),
            folder=folder,
            log=folder / "node-0.log",
            environment=jobs[0].environment,
            script=batch_script(jobs, self._settings),
            payloads=tuple((job.entry, str(job.run_folder)) for job in jobs),
            unchecked=self._unchecked,
        )

    def check(self, submission: Submission) -> None:
        queue.test_only(submission.script)

    def submit(self, submission: Submission) -> list[str]:
        calls = []
        for entry, argument in submission.payloads:
            module, _, name = entry.partition(":")
            calls.append((getattr(import_module(module), name), Path(argument)))
        return _submit(submission.folder, submission.script, calls)

    def situation(self, handle: str) -> Situation:
        return queue.situation_of(handle)

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        return iter(())

    def stop(self, handle: str, number: signal.Signals) -> None:
        queue.cancel(handle)

    def kill(self, handle: str) -> None:
        queue.end(handle)


def _submit(folder: Path, script: str, calls: Sequence[tuple[object, Path]]) -> list[str]:
    """submitit ships each function by its name, with its run folder, and calls sbatch with our script.

    Its own arrays keep all payloads in one folder; here each run has what it was sent.
    """
    import submitit
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # it has no types
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script

    for _, run_folder in calls:
        (run_folder / FOLDER).mkdir(exist_ok=True)
    try:
        job = str(Executor(folder=folder)._submit_command("").job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise Refused(f"sbatch: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        raise ClusterError(f"{error}; use a machine that can submit to Slurm") from error
    handles = [job] if len(calls) == 1 else [f"{job}_{index}" for index in range(len(calls))]
    for handle, (function, run_folder) in zip(handles, calls, strict=True):
        payload = JobPaths(run_folder / FOLDER, handle).submitted_pickle
        hidden = payload.with_name(f".{payload.name}")
        DelayedSubmission(function, str(run_folder)).dump(hidden)
        hidden.rename(payload)  # the task waits for it
    return handles
