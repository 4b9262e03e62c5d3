"""A Slurm cluster as a backend: one job, one task per node, submitted through submitit."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from cluster.errors import ClusterError, Refused
from cluster.job import Job, Situation, Submission
from cluster.slurm import queue
from cluster.slurm.script import FOLDER, batch_script, cpus_per_node
from cluster.slurm.settings import SlurmSettings
from cluster.topology import Topology


class SlurmBackend:
    """Its handle is the job's id, which Slurm keeps when it starts the job again."""

    name = "slurm"
    needs_launcher = False

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = SlurmSettings.from_mapping(settings)

    def is_reachable(self) -> bool:
        return queue.answers()

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        """Asks Slurm whether the nodes have GPUs, unless the settings say it."""
        if self._settings.gpus is None:
            spelling = "gpus-per-node" if queue.has_gpus(self._settings.partition) else "none"
            self._settings = replace(self._settings, gpus=spelling)
        return Topology(nodes=nodes, ranks_per_node=ranks_per_node or 1, has_gpus=self._settings.gpus != "none")

    def cores_per_node(self, topology: Topology) -> int:
        return cpus_per_node(self._settings, ranks_per_node=topology.ranks_per_node, has_gpus=topology.has_gpus)

    def settings(self) -> dict[str, object]:
        return asdict(self._settings)

    def render(self, job: Job) -> Submission:
        return Submission(
            command=("sbatch",),
            folder=job.run_folder / FOLDER,
            log=job.logs / "node-0.log",
            environment=job.environment,
            script=batch_script(job, self._settings),
            payload=(job.entry, str(job.run_folder)),
        )

    def check(self, submission: Submission) -> None:
        queue.test_only(submission.script)

    def submit(self, submission: Submission) -> str:
        assert submission.payload is not None
        entry, argument = submission.payload
        module, _, name = entry.partition(":")
        function = getattr(import_module(module), name)
        return _submit(submission.folder, submission.script, function, argument)

    def situation(self, handle: str) -> Situation:
        return queue.situation_of(handle)

    def stop(self, handle: str, number: signal.Signals) -> None:
        queue.cancel(handle)

    def kill(self, handle: str) -> None:
        queue.end(handle)


def _submit(folder: Path, script: str, function: object, argument: str) -> str:
    """submitit ships the function by its name, with the argument, and calls sbatch with our script."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # it has no types
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script

    try:
        return str(Executor(folder=folder).submit(function, argument).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise Refused(f"sbatch: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        raise ClusterError(f"{error}; use a machine that can submit to Slurm") from error
