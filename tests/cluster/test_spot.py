"""The machines of `local_spot`: when they go, what their metadata service says, what is left of a job."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs_for_tests import REPOSITORY, wait_for

from cluster.errors import ClusterError
from cluster.interruption import Ec2
from cluster.spot.interruptions import Interruption, Record, drawn, read_trace
from cluster.spot.machines import TAKEN_CODE
from cluster.spot.metadata import MetadataServer
from cluster.spot.settings import SpotSettings

LINE = {"after_seconds": 0.0, "nodes": [1], "notice_seconds": 0.0, "gone_seconds": 30.0}


def trace(folder: Path, *lines: dict[str, object]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_seed_gives_the_same_interruptions_each_time_and_the_mean_that_was_asked_for():
    first = [drawn(3, 20, number, 2) for number in range(2000)]
    assert first == [drawn(3, 20, number, 2) for number in range(2000)]
    assert first[:20] != [drawn(4, 20, number, 2) for number in range(20)]
    assert 19 < statistics.mean(interruption.after_seconds for interruption in first) < 21
    assert {interruption.nodes for interruption in first} == {(0,), (1,), (0, 1)}
    assert {interruption.notice_seconds for interruption in first} == {0, 5, 120}


def test_what_was_recorded_is_a_trace(tmp_path):
    record = Record(tmp_path / "interruptions.jsonl")
    told = [drawn(1, 20, number, 2) for number in range(3)]
    for interruption in told:
        record.add(interruption, time.time())
    assert read_trace(record.path) == tuple(told)
    settings = SpotSettings.from_mapping({"trace": record.path})
    assert [settings.interruption(number, 2) for number in range(4)] == [*told, None]


def test_a_record_that_was_torn_is_read_as_far_as_it_goes(tmp_path):
    record = Record(tmp_path / "interruptions.jsonl")
    record.add(Interruption.from_json(LINE), 100.5)
    with open(record.path, "a") as file:
        file.write('{"after_sec')
    assert (record.count(), record.capacity_in_seconds(120.5)) == (1, 10)


def test_capacity_is_gone_for_as_long_as_was_said(tmp_path):
    record = Record(tmp_path / "interruptions.jsonl")
    assert record.capacity_in_seconds(100) <= 0
    record.add(Interruption.from_json(LINE), 100.0)
    assert record.capacity_in_seconds(110) == 20
    assert record.capacity_in_seconds(131) <= 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nodes": []}, "line 1: nodes=[] is not a list of nodes"),
        ({"nodes": [True]}, "nodes=[true]"),
        ({"gone_seconds": -1}, "gone_seconds=-1 is not a number of seconds"),
        ({"after_seconds": float("nan")}, "after_seconds=NaN is not"),
        ({"notice_seconds": None}, "notice_seconds=null is not"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named_by_line_and_field(tmp_path, changed, said):
    with pytest.raises(ClusterError) as refused:
        SpotSettings.from_mapping({"trace": trace(tmp_path, {**LINE, **changed})})
    assert said in str(refused.value)


def test_the_watcher_of_ec2_machines_understands_the_metadata_service():
    server = MetadataServer()
    server.serve()
    cloud = Ec2(server.url)
    assert cloud.interruption() is None
    server.interrupt(30)
    mark = cloud.interruption()
    assert mark is not None
    assert (mark.why, 28 < mark.seconds_left() <= 30) == ("AWS will terminate this spot instance", True)


WORK = """
import os, pathlib, sys, time
from cluster.preemption import Notice
here, notice = pathlib.Path(sys.argv[1]) / os.environ["LAUNCH_NODE"], Notice.from_environment()
here.touch()
while not notice.is_given():
    time.sleep(0.02)
here.write_text(notice.reason())
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({"after_seconds": 1}, {"0": "SIGTERM", "1": ""}),
        ({"notice_seconds": 30}, {"0": "SIGTERM", "1": "AWS will terminate this spot instance (in "}),
        ({"after_seconds": 1, "nodes": [0, 1]}, {"0": "", "1": ""}),
    ],
    ids=["one", "one with notice", "both"],
)
def test_when_a_machine_goes_so_does_the_job_with_the_others(tmp_path, monkeypatch, changed, left):
    """Each machine leaves what it was told before it ended: nothing if it was not told; and no temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    command = [sys.executable, "-m", "cluster.spot.machines", "--nodes", "2", "--logs", str(tmp_path)]
    command += ["--record", str(tmp_path / "record"), "--trace", str(trace(tmp_path, {**LINE, **changed}))]
    process = subprocess.Popen([*command, sys.executable, "-c", WORK, str(tmp_path)], cwd=REPOSITORY)
    assert process.wait(60) == TAKEN_CODE
    for node, reason in left.items():
        assert (tmp_path / node).read_text().startswith(reason)
        assert bool((tmp_path / node).read_text()) == bool(reason)
    assert Record(tmp_path / "record").count() == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_machines_end_with_whoever_has_them(tmp_path):
    command = [sys.executable, "-m", "cluster.spot.machines", "--nodes", "2", "--logs", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--record", str(tmp_path / "record"), sys.executable, "-c", WORK, str(tmp_path)], cwd=REPOSITORY
    )
    wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both machines to work")
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(children) == 4
    assert psutil.wait_procs(children, timeout=60)[1] == []
