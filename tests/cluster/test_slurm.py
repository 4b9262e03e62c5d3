"""Runs and groups of runs as jobs of a real Slurm: what is submitted, shown, cancelled and refused."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
from functools import partial

import pytest
from support.bundles import check_bundle
from support.runs_for_tests import TINY, wait_for
from support.slurm import RANKS, TRAP, SlurmRun, hosts, outcomes, slurm_run


def test_two_nodes_train_to_the_end_like_one(slurm, course, monkeypatch, tmp_path):
    """As a dry run has shown; and nothing in the name of the runs folder is executed, no secret is left anywhere."""
    secret = secrets.token_hex(16)
    monkeypatch.setitem(slurm.environment, "HF_TOKEN", secret)
    run = slurm_run(slurm, course, "plain")
    bundle = tmp_path / "bundle"
    shown = run.submit("--dry-run", "--no-steps", "--bundle", str(bundle)).stdout
    assert not run.run.exists()
    result = run.submit()
    assert result.stdout == f"{run.run}\n"
    assert f"slurm job {run.job} is submitted" in result.stderr
    said = slurm.run("scontrol", "show", "job", run.job)
    run.wait_for_success()
    run.check_ending()
    assert outcomes(run) == ["SUCCEEDED"]
    assert [hosts(run, 1)[rank] for rank in range(RANKS)] == ["node1", "node1", "node2", "node2"]
    script = (run.run / f"slurm/{run.job}_submission.sh").read_text()
    assert shown == f"{script}\n# what is called on each node\n# {payload(run)}\n"
    assert payload(run) == f"launcher.on_node:train({str(run.run)!r})"
    assert (bundle / "submission.sh").read_text() == script
    assert (bundle / "calls.txt").read_text() == f"{payload(run)}\n"
    check_bundle(bundle, run.run)
    assert list(slurm.folder.rglob(TRAP)) == []
    assert secret not in said
    assert [file for file in run.run.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()] == []


def payload(run: SlurmRun) -> str:
    """What the pickle that was sent holds, read with the code of the run."""
    code = (
        "import pickle, sys; call = pickle.load(open(sys.argv[1], 'rb')); function = call.function\n"
        "print(f'{function.__module__}:{function.__name__}({\", \".join(map(repr, call.args))})', end='')"
    )
    pickle = run.run / f"slurm/{run.job}_submitted.pkl"
    return subprocess.run(
        [sys.executable, "-c", code, pickle], capture_output=True, text=True, check=True, cwd=run.run / "code"
    ).stdout


def test_a_job_that_waits_is_shown_so_and_can_be_cancelled(slurm, course):
    run = slurm_run(slurm, course, "waiting")
    run.submit("slurm.lines=--hold")
    state = run.status()
    assert (state["state"], state["job"]["state"]) == ("PENDING", "PENDING")
    assert "JobHeldUser" in state["job"]["reason"]
    refused = slurm.launch("resume", "waiting")
    assert refused.returncode == 2
    assert "use launch cancel waiting first" in refused.stderr
    cancelled = slurm.launch("cancel", "waiting")
    assert cancelled.returncode == 0, cancelled.stderr
    assert run.status()["state"] == "CANCELLED"
    assert slurm.job(run.job)["JobState"] == "CANCELLED"


def test_a_sweep_is_one_array_of_runs_which_slurm_starts_again_one_by_one(slurm, course):
    words = [*course.words(1), "--on", "slurm", "slurm.gpus=none", "slurm.memory=2G"]
    bad = slurm.launch(*words, "--name", "sweep", "--sweep", "optimizer.lr=1e-3,-1")
    assert (bad.returncode, bad.stderr.count("\n"), "optimizer.lr=-1" in bad.stderr) == (2, 1, True), bad.stderr
    sweep = [*words, "--name", "sweep", "--sweep", "optimizer.lr=1e-3,2e-3"]
    shown = slurm.launch(*sweep, "--dry-run", "--no-steps").stdout
    assert list(slurm.runs.glob("*sweep*")) == []
    result = slurm.launch(*sweep)
    assert result.returncode == 0, result.stderr
    runs = [slurm_run(slurm, course, f"sweep-{index}") for index in range(2)]
    assert result.stdout.splitlines() == [str(run.run) for run in runs]
    array = runs[0].job.removesuffix("_0")
    assert [run.job for run in runs] == [f"{array}_{index}" for index in range(2)]
    script = (runs[0].run / f"slurm/{array}_submission.sh").read_text()
    assert shown == f"{script}\n# what is called on each node\n" + "".join(f"# {payload(run)}\n" for run in runs)
    runs[1].wait_for_step(10)
    slurm.run("scontrol", "requeue", runs[1].job)
    slurm.hurry(runs[1].job)
    for run in runs:
        run.wait_for_success()
    assert [outcomes(run) for run in runs] == [["SUCCEEDED"], ["PREEMPTED", "SUCCEEDED"]]
    table = slurm.launch("status", "sweep").stdout.splitlines()
    assert [line.split()[:4] for line in table] == [
        ["run", "optimizer.lr", "state", "step"],
        ["sweep-0", "0.001", "SUCCEEDED", "120/120"],
        ["sweep-1", "0.002", "SUCCEEDED", "120/120"],
    ]


def test_a_group_that_waits_is_cancelled_as_one_and_its_members_are_resumed_one_by_one(slurm, course):
    words = [*course.words(1), "--on", "slurm", "slurm.gpus=none", "slurm.lines=--hold"]
    assert slurm.launch(*words, "--name", "group", "--seeds", "3").returncode == 0

    def states() -> list[str]:
        return [run["state"] for run in json.loads(slurm.launch("status", "group", "--json").stdout)["runs"]]

    assert states() == ["PENDING"] * 3
    cancelled = slurm.launch("cancel", "group-1")
    assert cancelled.returncode == 0, cancelled.stderr
    assert states() == ["PENDING", "CANCELLED", "PENDING"]
    assert slurm.launch("cancel", "group").returncode == 0
    assert states() == ["CANCELLED"] * 3
    assert slurm.launch("resume", "group-1").returncode == 0
    assert states() == ["CANCELLED", "PENDING", "CANCELLED"]
    assert json.loads((slurm.runs / "group-1/attempts/0002/attempt.json").read_text())["handle"].isdecimal()
    assert slurm.launch("cancel", "group").returncode == 0


BAD: dict[str, tuple[dict[str, str], str, int, str]] = {
    "an unknown partition": ({}, "slurm.partition=nowhere", 3, "invalid partition specified: nowhere"),
    "more nodes than there are": ({"--nodes": "9"}, "slurm.gpus=none", 3, "configuration"),
    "more GPUs than a node has": ({"--gpus": "5"}, "slurm.gpus=gres", 3, "node configuration is not available"),
    "a time that is none": ({}, "slurm.time=soon", 2, "slurm.time='soon' is not a time limit; use"),
    "an unknown setting": ({}, "slurm.partitoin=x", 2, "did you mean slurm.partition?"),
    "a signal that ends ranks": ({}, "slurm.signal=KILL", 2, "slurm.signal='KILL' is not one of USR2"),
    "a line in a word": ({}, "slurm.account=a\n#SBATCH --x", 2, "must be one word"),
    "a command in a word": ({}, "slurm.qos=$(touch /tmp/x)", 2, "must be one word"),
    "a line in a line": ({}, "slurm.setup=true\nfalse", 2, "must be one printable line"),
    "a line that is no option": ({}, "slurm.lines=; touch x", 2, "must be an option of sbatch"),
    "a place that is none": ({"--on": "nowhere"}, "steps=3", 2, "use one of: kubernetes, local"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_slurm_would_refuse_is_refused_in_one_line_and_nothing_is_made(slurm, name):
    flags, word, code, said = BAD[name]
    settings = {word} if word.startswith("slurm.gpus") or "--on" in flags else {word, "slurm.gpus=none"}
    flags = {"--nodes": "2", "--gpus": "2", "--on": "slurm"} | flags
    words = [text for flag in flags.items() for text in flag]
    result = slurm.launch(TINY, *words, "--name", "bad", "batch.size=64", *settings)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (slurm.runs / "bad").exists()


def test_a_runs_folder_that_the_nodes_do_not_see_is_named(slurm, course):
    """Each node has a /dev/shm of its own."""
    run = slurm_run(slurm, course, "unseen")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run.submit("--runs-dir", folder)
        state = partial(slurm.launch, "status", f"{folder}/unseen")
        said = wait_for(lambda: "is not visible on this node" in (text := state().stdout) and text, "the job to tell")
    assert f"{folder}/unseen/code is not visible on this node; --runs-dir must be on a file system" in said
