"""Stop signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.job import Job, JobState
from cluster.local import LocalBackend, start_time
from cluster.preemption import STOP_SIGNALS, Notice
from cluster.topology import Topology

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import os, signal\nfrom pathlib import Path\nfrom cluster.preemption import *\n"
WAIT = "\nimport time\nprint('ready', flush=True)\nfor _ in range(600): time.sleep(0.1)"


def start(code: str, **options: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code + WAIT], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_becomes_the_notice_and_ends_nothing(tmp_path, number):
    notice = Notice(tmp_path / "notice")
    process = start(f"{IMPORTS}handle_signals(Notice(Path({str(notice.path)!r})))")
    process.send_signal(number)
    wait_until(notice.is_given)
    assert notice.reason() == number.name
    assert process.poll() is None
    end(process)


FORK = f"""{IMPORTS}
import sys, time
notice = Notice(Path(sys.argv[1]))
handle_signals(notice)
hold_stop_signals_in_forks()
child = os.fork()
if child == 0:
    time.sleep(1)  # as a rank does that has not come to its first line yet
    watch_signals(notice, supervisor=os.getppid(), leave=lambda: os._exit(7))
    time.sleep(60)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), notice.is_given())
os.kill(os.getpid(), signal.SIGTERM)
print(notice.reason())
"""


def test_a_forked_process_leaves_when_its_supervisor_says_so_before_it_listens(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "notice")], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=90
    )
    assert said.stdout.split() == ["7", "False", "SIGTERM"]


def test_the_first_reason_stands(tmp_path):
    notice = Notice(tmp_path / "notice")
    assert notice.reason() == ""
    notice.give("SIGTERM")
    notice.give("SIGINT")
    assert notice.reason() == "SIGTERM"


def test_a_notice_after_the_node_has_cleaned_up_is_no_error(tmp_path):
    notice = Notice(tmp_path / "gone/notice")
    notice.give("SIGTERM")
    assert not notice.is_given()


def watching(notice: Notice, supervisor: int) -> subprocess.Popen[str]:
    return start(f"{IMPORTS}watch_signals(Notice(Path({str(notice.path)!r})), {supervisor}, lambda: os._exit(7))")


def test_a_signal_of_the_supervisor_ends_a_rank_and_is_no_notice(tmp_path):
    notice = Notice(tmp_path / "notice")
    process = watching(notice, os.getpid())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 7
    assert not notice.is_given()
    process.communicate()


def test_a_signal_of_anybody_else_is_a_notice(tmp_path):
    notice = Notice(tmp_path / "notice")
    process = watching(notice, supervisor=1)
    process.send_signal(signal.SIGTERM)
    wait_until(notice.is_given)
    assert process.poll() is None
    end(process)


def test_a_process_ends_with_its_parent(tmp_path):
    pid_file = tmp_path / "pid"
    child = (
        f"{IMPORTS}from cluster.processes import die_with_parent\ndie_with_parent(signal.SIGKILL, os.getppid())\n"
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(60)"
    )
    parent = start(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}], cwd={str(ROOT)!r})")
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    end(parent)
    wait_until(lambda: start_time(pid) == 0)


def test_a_handle_is_not_taken_for_a_later_process_of_the_same_pid():
    process = start("")
    backend = LocalBackend({})
    assert backend.situation(f"{process.pid}:{start_time(process.pid)}").state is JobState.RUNNING
    assert backend.situation(f"{process.pid}:1").state is JobState.ENDED
    backend.kill(f"{process.pid}:1")
    assert process.poll() is None
    end(process)


WAIT_FOR_NOTICE = """
import sys, time
from cluster.preemption import Notice
notice = Notice.from_environment()
deadline = time.monotonic() + 60
while not notice.is_given() and time.monotonic() < deadline: time.sleep(0.01)
open(sys.argv[1], "w").write(notice.reason())
"""


def job(tmp_path: Path) -> Job:
    """Writes the reason of the notice to a file."""
    return Job(
        name="waiting",
        attempt=1,
        command=(sys.executable, "-c", WAIT_FOR_NOTICE, str(tmp_path / "reason")),
        entry="",
        run_folder=tmp_path,
        folder=ROOT,
        logs=tmp_path,
        environment={},
        topology=Topology(nodes=1, ranks_per_node=1, has_gpus=False),
        checkpoints="",
        resume=(),
        grace_seconds=None,
    )


def reason(tmp_path: Path) -> str:
    path = tmp_path / "reason"
    wait_until(lambda: path.exists() and path.read_text(), 60)
    return path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_before_any_has_handlers_is_a_notice(tmp_path, number):
    backend = LocalBackend({})
    (handle,) = backend.submit(backend.render([job(tmp_path)]))
    node = int(handle.partition(":")[0])
    wait_until(lambda: os.killpg(node, number) or psutil.Process(node).children(), 60)  # until its command has started
    os.killpg(node, number)
    assert reason(tmp_path) == number.name
    wait_until(lambda: backend.situation(handle).state is JobState.ENDED, 60)


def test_a_launcher_that_ends_while_its_node_process_starts_is_noticed(tmp_path):
    code = "from pathlib import Path\n"
    code += "from cluster.local import LocalBackend\nfrom cluster.job import Submission\nbackend = LocalBackend({})\n"
    code += f"backend.submit({LocalBackend({}).render([job(tmp_path)])!r})"
    code = code.replace("PosixPath", "Path")
    subprocess.run([sys.executable, "-c", code + "\nimport os\nos._exit(0)"], cwd=ROOT, check=True)
    assert reason(tmp_path) == "SIGTERM"
