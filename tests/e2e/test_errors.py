"""Whatever goes wrong, the last thing printed is the first failure, in one line, and the exit code says what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.runs_for_tests import (
    LAUNCH,
    REPOSITORY,
    SMALL,
    TINY,
    environment,
    fill,
    launch,
    read_until,
    small_words,
    start,
    status,
    steps_of,
    wait_for,
    wait_for_step,
)

TROUBLE = REPOSITORY / "tests/support/recipes/trouble.py"

FAILURES = {
    "NAN": (1, "rank 0 on {host}: the loss is nan; samples: ", "train-7"),
    "OWN_ERROR": (1, "ZeroDivisionError: the user's own mistake", ""),
    "NOT_DETERMINISTIC": (2, "the operation put_ has no deterministic kernel; use deterministic=false", ""),
    "DIES": (93, "4 times in a row without a new commit: rank ", "killed by SIGKILL"),
    "WORKER": (93, "a data worker died", ""),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_last_line_is_the_first_failure(tmp_path, name):
    code, said, also = FAILURES[name]
    result = launch(f"{TROUBLE}:{name}", "--gpus", "2", "--name", "run", runs_dir=tmp_path)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == code, result.stderr
    assert last.startswith("failed: ")
    assert said.format(host=os.uname().nodename) in last
    assert also in last
    assert result.stderr.count("Traceback") <= 2, "a chain of two exceptions at most, told once"
    assert status(tmp_path / "run")["state"] == "FAILED"


@pytest.fixture
def small_memory():
    """A control group whose processes may use 2 GB together."""
    group = next(
        (line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None
    )
    folder = Path(f"/sys/fs/cgroup/memory{group}/launch-test-{os.getpid()}")
    if group is None or not os.access(folder.parent, os.W_OK):
        pytest.skip("limiting the memory of processes takes root, and the memory controller of cgroups version 1")
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(2 * 10**9))
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text(), "the last process of the run to leave")
    folder.rmdir()


def test_a_rank_that_the_kernel_ends_for_lack_of_memory_is_said_to_be(tmp_path, small_memory):
    enter = ["sh", "-c", f'echo $$ > {small_memory}/cgroup.procs && exec "$@"', "sh"]
    words = [f"{TROUBLE}:GREEDY", "--gpus", "1", "--name", "run"]
    result = subprocess.run(
        [*enter, *LAUNCH, *words], cwd=REPOSITORY, env=environment(tmp_path), capture_output=True, text=True
    )
    assert result.returncode == 93, result.stderr
    assert (
        "killed by SIGKILL: the kernel ended processes of this job for lack of memory" in result.stderr.splitlines()[-1]
    )
    restarted = "killed by SIGKILL: the kernel ended processes of this job for lack of memory; its ranks start again"
    assert result.stderr.count(restarted) == 3


def test_a_recipes_own_model_data_and_loss_train(tmp_path):
    recipe = tmp_path / "elsewhere/trouble.py"
    recipe.parent.mkdir()
    shutil.copy(TROUBLE, recipe)
    result = launch(str(recipe), "--name", "run", "data.workers=2", runs_dir=tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert steps_of(tmp_path / "run") == list(range(1, 13))


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path):
    launcher = start(*small_words(1, steps=2000), "--name", "run", runs_dir=tmp_path)
    wait_for_step(tmp_path / "run", 2)
    result = launch("resume", "run", runs_dir=tmp_path)
    launcher.terminate()
    launcher.communicate(timeout=300)
    assert result.returncode == 2
    assert "is being trained by job run/1" in result.stderr.splitlines()[-1]
    assert launcher.returncode == 75


def test_a_damaged_newest_checkpoint_is_skipped_and_said(tmp_path):
    assert launch(TINY, *SMALL, "stop_after=10", "--name", "run", runs_dir=tmp_path).returncode == 75
    newest = max((tmp_path / "run/checkpoints/data").iterdir(), key=lambda folder: int(folder.name.split("-")[1]))
    shard = newest / "rank-00000.bin"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    verified = launch("checkpoints", "verify", "run", runs_dir=tmp_path)
    assert verified.returncode == 1
    assert "step 10: " in verified.stdout
    assert "step 5: intact" in verified.stdout
    result = launch("resume", "run", runs_dir=tmp_path)
    assert result.returncode == 0
    assert "was skipped" in result.stderr
    assert "continuing after step 5" in result.stderr
    assert steps_of(tmp_path / "run") == list(range(1, 61))


def test_no_intact_checkpoint_is_exit_4_and_never_a_start_from_scratch(tmp_path):
    assert launch(TINY, *SMALL, "stop_after=5", "--name", "run", runs_dir=tmp_path).returncode == 75
    for shard in (tmp_path / "run/checkpoints/data").glob("*/rank-*.bin"):
        shard.write_bytes(b"")
    result = launch("resume", "run", runs_dir=tmp_path)
    assert result.returncode == 4, result.stderr
    assert steps_of(tmp_path / "run") == list(range(1, 6))


def test_a_change_that_decides_the_result_is_refused_unless_allowed(tmp_path):
    assert launch(TINY, *SMALL, "stop_after=5", "--name", "run", runs_dir=tmp_path).returncode == 75
    for word, said in (
        ("optimizer.lr=1e-3", "optimizer.lr changed: 0.002 -> 0.001"),
        ("batch.size=4", "batch.size changed: 6 -> 4"),
        ("seed=2", "seed changed: 1 -> 2"),
    ):
        refused = launch("resume", "run", word, runs_dir=tmp_path)
        assert refused.returncode == 2
        assert said in refused.stderr.splitlines()[-1]
    allowed = launch("resume", "run", "seed=2", "--allow-change", "seed", runs_dir=tmp_path)
    assert allowed.returncode == 0, allowed.stderr


def test_changed_data_is_refused_by_name_before_the_first_step(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes((REPOSITORY / "recipes/data/python_reference.txt").read_bytes()[:60_000])
    words = [TINY, *SMALL, f"data.path={text}"]
    assert launch(*words, "stop_after=5", "--name", "run", runs_dir=tmp_path).returncode == 75
    text.write_bytes(text.read_bytes().replace(b"the", b"The"))
    refused = launch("resume", "run", runs_dir=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "data changed: digest" in refused.stderr.splitlines()[-1]
    assert "--allow-change data" in refused.stderr.splitlines()[-1]
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert launch("resume", "run", "--allow-change", "data", runs_dir=tmp_path).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_neither_the_last_commit_nor_the_run(small_disk):
    launcher = start(*small_words(1, steps=500, checkpoint__every=4), "--name", "run", runs_dir=small_disk)
    run = small_disk / "run"
    wait_for_step(run, 20)
    filler = small_disk / "filler"
    fill(filler)
    said = read_until(launcher, "is full since")
    commits = status(run)["commits"]  # on a full disk nothing else can be watched; some saves fail meanwhile
    filler.unlink()
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    assert commits, "the last commit was lost"
    assert "is full since" in said
    assert re.search(r"committed .*; [0-9]+ since [0-9:]+ were not", errors)
    assert "the disk has space again" in errors
    assert steps_of(run) == list(range(1, 501))
