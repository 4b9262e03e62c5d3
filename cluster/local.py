"""This machine as a backend: the node process is a child of the launcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job import Job, JobState, Situation, Submission
from cluster.preemption import stop_signals_held
from cluster.processes import die_with_parent
from cluster.rent import Rent
from cluster.topology import Topology, local_core_count, local_gpu_count

_HANDLE = re.compile(r"([1-9][0-9]{0,9}):([1-9][0-9]{0,18})")


class LocalBackend:
    """Runs one node here. Its handle is `pid:start time`: a pid that was given away again is not mistaken for it."""

    name = "local"
    needs_launcher = True
    stop_signals = (signal.SIGTERM,)
    resumes_there = False
    note = ""
    shares_run_folder = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        if settings:
            raise ClusterError(f"--on local has no setting {next(iter(settings))}; give none")
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def is_reachable(self) -> bool:
        return True

    def topology(self, nodes: int, ranks_per_node: int | None) -> Topology:
        """This machine's GPUs, or CPU ranks where it has none; one rank if no number is given and there is no GPU."""
        if nodes > 1:
            raise ClusterError(f"--nodes {nodes} is more than --on local has (1); use more --gpus, or --on slurm")
        gpus = local_gpu_count()
        if gpus and ranks_per_node and ranks_per_node > gpus:
            raise ClusterError(
                f"--gpus {ranks_per_node} is more than this machine has ({gpus}); use --gpus {gpus} or less"
            )
        return Topology(nodes=nodes, ranks_per_node=ranks_per_node or max(1, gpus), has_gpus=gpus > 0)

    def cores_per_node(self, topology: Topology) -> int:
        return local_core_count()

    def notice(self) -> tuple[str, float] | None:
        return None

    def rent(self) -> Rent:
        return Rent()

    def settings(self) -> dict[str, object]:
        return {}

    def render(self, jobs: Sequence[Job]) -> Submission:
        (job,) = jobs
        return Submission(
            command=(sys.executable, "-m", "cluster.node", *job.command),
            folder=job.folder,
            log=job.logs / "node-0.log",
            environment=job.whole_environment(),
        )

    def check(self, submission: Submission) -> None:
        """This machine takes whatever its topology allows."""

    def submit(self, submission: Submission) -> list[str]:
        # A session of its own: Ctrl-C in the terminal reaches the launcher alone, which decides what it means.
        with open(submission.log, "ab") as log, stop_signals_held():
            child = subprocess.Popen(
                submission.command,
                cwd=submission.folder,
                env={**os.environ, **submission.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # The launcher is gone for good: save and leave, so that nothing is lost and nobody trains unseen.
                preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
            )
        handle = handle_of(child.pid)
        self._children[handle] = child
        return [handle]

    def situation(self, handle: str) -> Situation:
        child = self._children.get(handle)
        is_alive = child.poll() is None if child is not None else _is_alive(handle)
        return Situation(state=JobState.RUNNING if is_alive else JobState.ENDED)

    def log_lines(self, handle: str, *, follow: bool) -> Iterator[str]:
        return iter(())

    def stop(self, handle: str, number: signal.Signals) -> None:
        _signal(handle, number, to_group=False)

    def kill(self, handle: str) -> None:
        _signal(handle, signal.SIGKILL, to_group=True)


def handle_of(pid: int) -> str:
    """What this backend calls the process, which need not be a child of this one."""
    return f"{pid}:{start_time(pid)}"


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5)); 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _is_alive(handle: str) -> bool:
    found = _HANDLE.fullmatch(handle)
    return found is not None and start_time(int(found[1])) == int(found[2])


def _signal(handle: str, number: signal.Signals, *, to_group: bool) -> None:
    if not _is_alive(handle):
        return
    pid = int(handle.partition(":")[0])
    try:
        (os.killpg if to_group else os.kill)(pid, number)
    except ProcessLookupError:
        pass
