"""Real runs on file systems that stop taking data: the run goes on, says it in one line, and recovers by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.runs_for_tests import (
    fill,
    json_lines,
    launch,
    read_until,
    small_words,
    start,
    status,
    steps_of,
    wait_for,
    wait_for_step,
)

from launcher.rehearsal.processes import Processes

WORDS = small_words(1, steps=100_000, checkpoint__every=20)


def need(is_there: bool, what: str) -> None:
    if not is_there:
        assert "CI" not in os.environ, what
        pytest.skip(what)


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a file system can be mounted; whatever is mounted there is taken away at the end."""
    need(os.geteuid() == 0, "mounting a file system takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    while folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def strace(pid: int, *words: str) -> Iterator[None]:
    """Have the kernel answer system calls of that process with errors."""
    command = ["strace", "-f", "-p", str(pid), "-o", "/dev/null", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            yield
        finally:
            tracer.terminate()


def events_of(run: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in json_lines(run / "attempts/0001/events.jsonl") if event["event"] == kind]


def writer_of(launcher: subprocess.Popen[str]) -> int:
    return int(wait_for(lambda: Processes(launcher.pid).find()["writer"], "the writer process")[0])


def stop(launcher: subprocess.Popen[str], run: Path) -> str:
    """What the launcher has still said when the run was stopped; all its steps are there, and the last is committed."""
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    steps = steps_of(run)
    assert steps == list(range(1, len(steps) + 1))
    assert status(run)["commits"][-1]["step"] == len(steps)
    return errors


def test_a_disk_that_is_read_only_for_a_while_costs_a_run_nothing_but_checkpoints(folder):
    mount("-t", "tmpfs", "tmpfs", folder)
    launcher = start(*WORDS, "--name", "run", runs_dir=folder)
    run = folder / "run"
    wait_for(lambda: events_of(run, "committed"), "a commit")
    # The kernel makes no mount read-only through which files are written. One on top of it has none but for moments.
    mount("--bind", folder, folder)
    remount = ["mount", "-o", "remount,bind,ro", folder]
    wait_for(lambda: subprocess.run(remount, check=False).returncode == 0, "a moment in which nothing is written")
    assert f"the disk of {run} is read-only since " in read_until(launcher, "the disk of")
    wait_for(lambda: len(events_of(run, "save_failed")) > 5, "more failed checkpoints than end a run on a broken disk")
    commits = status(run)["commits"]
    subprocess.run(["umount", "--lazy", folder], check=True)
    said = read_until(launcher, "the disk can be written again")
    said += stop(launcher, run)
    assert commits
    assert said.count("failed: ") == 0, "it was said before"
    assert events_of(run, "restarted") == []


def test_a_run_that_reaches_its_end_on_a_full_disk_waits_for_space_and_ends_well(folder):
    mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", folder)
    launcher = start(*small_words(1, steps=300, checkpoint__every=20), "--name", "run", runs_dir=folder)
    run, filler = folder / "run", folder / "filler"
    wait_for(lambda: events_of(run, "committed"), "a commit")
    (rank,) = Processes(launcher.pid).find()["rank"]
    fill(filler)
    wait_for(lambda: not psutil.pid_exists(rank), "the end of the rank, which could not commit its last step")
    filler.unlink()
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    assert errors.count("is full since ") == 1
    assert steps_of(run) == list(range(1, 301))


def test_a_disk_that_turned_read_only_by_an_error_ends_no_run_and_a_stop_says_what_is_lost(folder):
    need(shutil.which("mkfs.ext4") is not None, "mkfs.ext4 is not installed")
    image = folder.with_name("image")
    with open(image, "wb") as file:
        file.truncate(96 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    mount("-o", "loop,errors=remount-ro", image, folder)
    device = subprocess.run(["findmnt", "-no", "SOURCE", folder], check=True, capture_output=True, text=True).stdout
    launcher = start(*WORDS, "--name", "run", runs_dir=folder)
    run = folder / "run"
    wait_for(lambda: events_of(run, "committed"), "a commit")
    Path(f"/sys/fs/ext4/{Path(device.strip()).name}/trigger_fs_error").write_text("1")
    assert "is read-only since " in read_until(launcher, "the disk of")
    (rank,) = Processes(launcher.pid).find()["rank"]
    os.kill(rank, signal.SIGKILL)  # its successor can neither write its log nor claim the run: it waits
    wait_for(lambda: not Processes(launcher.pid).find()["rank"], "the end of the rank")
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert f"stopped (SIGINT, the disk of {run} is read-only, so work since the newest commit" in errors
    assert errors.splitlines()[-1] == f"  launch resume {run.name}"
    subprocess.run(["umount", folder], check=True)
    mount("-o", "loop", image, folder)
    step = status(run)["commits"][-1]["step"]
    resumed = launch("resume", "run", f"stop_after={step + 5}", runs_dir=folder)
    assert resumed.returncode == 75, resumed.stderr
    assert f"continuing after step {step}" in resumed.stderr
    # Metrics that were not yet on the medium when the file system failed are gone: only checkpoints are synchronized.
    assert steps_of(run)[-5:] == list(range(step + 1, step + 6))


def test_a_quota_is_waited_for_and_a_failed_fsync_gives_up_one_save(tmp_path):
    need(shutil.which("strace") is not None, "strace is not installed")
    launcher = start(*WORDS, "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for(lambda: events_of(run, "committed"), "a commit")
    writer = writer_of(launcher)
    with strace(writer, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"):
        assert "Input/output error" in read_until(launcher, "failed: rank 0 could not save (put)")
        read_until(launcher, "1 since ")
    with strace(writer, "-e", "trace=fsync", "-e", "inject=fsync:error=EDQUOT"):
        assert "the disk or the quota is full" in read_until(launcher, "failed: rank 0 could not save (put)")
        wait_for(lambda: len(events_of(run, "save_failed")) > 6, "more failed checkpoints than end a run")
    recovered = read_until(launcher, "committed")
    assert " since " in recovered
    assert "failed: " not in stop(launcher, run)


def test_while_a_write_hangs_training_goes_on_and_later_checkpoints_are_skipped(tmp_path):
    launcher = start(*WORDS, "--name", "run", runs_dir=tmp_path)
    run = tmp_path / "run"
    wait_for(lambda: events_of(run, "committed"), "a commit")
    writer = writer_of(launcher)
    os.kill(writer, signal.SIGSTOP)
    said = read_until(launcher, "is being written since ")
    step = int(said.split()[3])
    wait_for_step(run, step + 100)
    wait_for(lambda: len(events_of(run, "save_skipped")) >= 2, "skipped checkpoints")
    os.kill(writer, signal.SIGCONT)
    recovered = read_until(launcher, f"checkpoint of step {step} committed")
    assert " since " in recovered
    assert len(events_of(run, "save_slow")) == 1
    stop(launcher, run)
