"""A real Slurm of three nodes on this machine, and runs that are left to it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.campaign import Course, Disturbed
from support.runs_for_tests import LAUNCH, REPOSITORY, environment, json_lines, steps_of, wait_for

SCRIPT = REPOSITORY / "scripts/slurm-cluster"
NODES, RANKS_PER_NODE = 2, 2
RANKS = NODES * RANKS_PER_NODE
TRAP = "executed"  # the file that is there if a shell has taken the name of the runs folder for its own
_NEEDED = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "ip")


def why_not() -> str:
    """Why there can be no cluster here; empty when there can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in _NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"{', '.join(missing)} missing: scripts/slurm-cluster install"
    return "" if os.geteuid() == 0 else "a Slurm of several nodes on one machine needs root"


class Cluster:
    """Its folder has a short path that all users can enter; runs are kept below it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.runs = self.folder / f"shared/$(touch {TRAP});touch {TRAP}'\"& runs"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))},
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
        }

    def script(self, command: str, *words: str) -> str:
        result = subprocess.run(
            [SCRIPT, command, self.folder, *words], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def close(self) -> None:
        try:
            self.script("stop")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    def launch(self, *words: str, timeout: float = 300, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LAUNCH, *words],
            cwd=cwd,
            env={**environment(self.runs), **self.environment, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def job(self, job: str) -> dict[str, str]:
        """What the controller says of a job."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def hurry(self, job: str) -> None:
        """A job that was requeued waits six seconds; not this one."""
        wait_for(lambda: self.job(job)["JobState"] in ("PENDING", "RUNNING"), f"job {job} to be pending")
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=self.environment, check=False)

    def idle(self) -> None:
        """Return when all nodes are."""
        wait_for(
            lambda: self.run("sinfo", "-h", "-p", "normal", "-t", "idle", "-o", "%D") == "3", "all nodes to be idle"
        )


@dataclass
class SlurmRun(Disturbed):
    """A run that Slurm has, and which nobody helps: of two nodes with two ranks each, or of another number of nodes."""

    cluster: Cluster | None = None
    nodes: int = NODES
    submitted: float = 0.0

    @property
    def slurm(self) -> Cluster:
        assert self.cluster is not None
        return self.cluster

    @property
    def run(self) -> Path:
        return self.slurm.runs / self.name

    @property
    def job(self) -> str:
        return str(json.loads((self.run / "attempts/0001/attempt.json").read_text())["handle"])

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.submitted = time.monotonic()
        of_course = self.course.words(self.ranks // self.nodes)
        command = [*of_course, "--nodes", str(self.nodes), "--on", "slurm", "--name", self.name]
        result = self.slurm.launch(*command, "slurm.gpus=none", "slurm.memory=4G", *words)
        assert result.returncode == 0, result.stderr
        return result

    def attempts(self) -> list[Path]:
        return sorted(path.parent for path in self.run.glob("attempts/*/attempt.json"))

    def step(self) -> int:
        return (steps_of(self.run) or [0])[-1]

    def wait_for_step(self, step: int, timeout: float = 300) -> None:
        wait_for(lambda: self.step() >= step, f"step {step} of {self.name}:\n{self.told()}", timeout)

    def wait_for_attempt(self, number: int, timeout: float = 300) -> None:
        """Until it takes steps."""
        wait_for(
            lambda: any(record["attempt"] == number for record in json_lines(self.run / "metrics.jsonl")),
            f"a step of attempt {number}",
            timeout,
        )

    def random_step(self, choose: random.Random) -> int:
        """One that the run has not reached, and after which it is still at work for a while."""
        last = self.course.schedule.steps - 20
        return choose.randint(self.step() + 3, max(self.step() + 3, min(self.step() + 25, last)))

    def status(self) -> dict[str, Any]:
        result = self.slurm.launch("status", self.name, "--json")
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def wait_for_success(self, timeout: float = 300) -> None:
        def has_ended() -> bool:
            outcome = self.attempts()[-1] / "outcome.json"
            return outcome.exists() and json.loads(outcome.read_text())["state"] in ("SUCCEEDED", "FAILED")

        wait_for(has_ended, f"{self.name} to end", timeout)
        assert self.status()["state"] == "SUCCEEDED", self.told()

    def told(self) -> str:
        """Logs of nodes and of the batch script, for a test that fails."""
        logs = [*self.run.glob("slurm/batch.log"), *self.run.glob("attempts/*/logs/node-*.log")]
        return "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in logs)


def start_cluster() -> Cluster:
    cluster = Cluster()
    try:
        cluster.script("start")
    except BaseException:
        cluster.close()
        raise
    return cluster


def slurm_run(cluster: Cluster, course: Course, name: str, nodes: int = NODES, ranks: int = RANKS) -> SlurmRun:
    return SlurmRun(course=course, name=name, ranks=ranks, cluster=cluster, nodes=nodes)


def outcomes(run: SlurmRun) -> list[str]:
    """How each attempt ended; empty for one that nobody could tell of."""
    files = [attempt / "outcome.json" for attempt in run.attempts()]
    return [json.loads(file.read_text())["state"] if file.exists() else "" for file in files]


def hosts(run: SlurmRun, attempt: int) -> dict[int, str]:
    """Where each rank of an attempt was."""
    files = (run.run / f"attempts/{attempt:04d}/pace").glob("*.json")
    return {pace["rank"]: pace["host"] for file in files for pace in json.loads(file.read_text())["ranks"]}
