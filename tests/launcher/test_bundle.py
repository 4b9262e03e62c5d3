"""The files of a launch before it is made: the same as those it makes, and without secrets."""

from __future__ import annotations

import json

import pytest
import yaml
from support.bundles import check_bundle, files_of
from support.runs_for_tests import REPOSITORY, launch, small_words

from launcher.cli import main
from launcher.commands.bundle import masked

TINY = str(REPOSITORY / "recipes/gpt_tiny.py")


def test_a_dry_run_has_every_file_of_the_launch_that_follows(tmp_path):
    words = [*small_words(2, steps=2), "--name", "run"]
    shown = launch(*words, "--dry-run", "--no-steps", "--bundle", str(tmp_path / "bundle"), runs_dir=tmp_path / "runs")
    assert shown.returncode == 0, shown.stderr
    assert not (tmp_path / "runs").exists()
    assert "\n  steps: 2  # command line\n" in shown.stderr
    assert (tmp_path / "bundle/submission.sh").read_text() == shown.stdout
    assert "--nproc-per-node=2" in (tmp_path / "bundle/torchrun.txt").read_text()
    result = launch(*words, runs_dir=tmp_path / "runs")
    assert result.returncode == 0, result.stderr
    check_bundle(tmp_path / "bundle", tmp_path / "runs/run")
    # What was executed, the node process knows itself.
    assert f"launcher.train {tmp_path / 'runs/run'} 1" in shown.stdout


def test_a_plan_has_the_same_files_as_a_dry_run_where_the_machines_are_those(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.chdir(REPOSITORY)
    words = [
        "recipes/llama_fsdp.py",
        "--gpus",
        "2",
        "--gpu",
        "h100",
        "--name",
        "run",
        f"--runs-dir={tmp_path / 'runs'}",
    ]
    assert main([*words, "--dry-run", "--no-steps", "--bundle", str(tmp_path / "dry")]) == 0
    assert main([*words, "--plan", "--bundle", str(tmp_path / "plan"), "--json"]) == 0
    capsys.readouterr()
    assert main([*words, "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["submission"]
    texts = {str(path.relative_to(tmp_path / "dry")): path.read_text() for path in files_of(tmp_path / "dry")}
    assert texts == {str(path.relative_to(tmp_path / "plan")): path.read_text() for path in files_of(tmp_path / "plan")}
    assert (found["target"], found["files"]) == ("local", texts)


def test_a_plan_for_more_machines_than_the_target_has_says_why_there_is_no_submission(tmp_path, capsys):
    words = ["llama_fsdp", "--plan", "--nodes", "2", "--on", "local", f"--runs-dir={tmp_path}"]
    assert main([*words, "--json"]) == 0
    assert "--nodes 2 is more than --on local has" in json.loads(capsys.readouterr().out)["submission"]["refused"]
    assert main([*words, "--bundle", str(tmp_path / "bundle")]) == 2
    assert not (tmp_path / "bundle").exists()


def test_members_of_a_sweep_have_a_folder_each(tmp_path, capsys):
    words = [
        TINY,
        "--dry-run",
        "--no-steps",
        "--name",
        "s",
        "--sweep",
        "optimizer.lr=1e-3,2e-3",
        f"--runs-dir={tmp_path / 'runs'}",
    ]
    assert main([*words, "--bundle", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    for name, lr in (("s-0", "0.001"), ("s-1", "0.002")):
        assert f"lr: {lr}  # command line" in (tmp_path / f"bundle/{name}/config.yaml").read_text()
        assert f"runs/{name} 1" in (tmp_path / f"bundle/{name}/submission.sh").read_text()


def test_what_is_sent_to_a_cluster_is_a_file_of_its_own(tmp_path, capsys):
    words = [TINY, "--on", "example-kubernetes", "--nodes", "2", "--runs-dir=/shared/runs", "--name", "k"]
    assert main([*words, "--dry-run", "--no-steps", "--bundle", str(tmp_path / "bundle")]) == 0
    shown = capsys.readouterr().out
    manifest = (tmp_path / "bundle/k-1.yaml").read_text()
    assert yaml.safe_load(manifest)["kind"] == "JobSet"
    sent = (tmp_path / "bundle/submission.txt").read_text()
    assert sent.startswith("POST /apis/jobset.x-k8s.io/")
    assert shown == f"# /shared/runs/k/kubernetes/k-1.yaml\n{manifest}# is sent by\n{sent}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("export HF_TOKEN=hf_abc\n", "export HF_TOKEN=***\n"),
        ("export WANDB_API_KEY='a b' A=1", "export WANDB_API_KEY=*** A=1"),
        ('aws_secret_access_key="x y"', "aws_secret_access_key=***"),
        ("MYSQL_PASSWORD=p;true", "MYSQL_PASSWORD=***"),
        ("PYTHONPATH=/a KEYS=3", "PYTHONPATH=/a KEYS=3"),
    ],
)
def test_values_of_secrets_are_masked(text, shown):
    assert masked(text) == shown


def test_secrets_of_a_profile_are_neither_printed_nor_written(tmp_path, capsys):
    words = ["llama_fsdp", "--on", "slurm", "slurm.gpus=gres", "slurm.setup=export HF_TOKEN=hf_abc", "--name", "run"]
    words += ["--bundle", str(tmp_path / "bundle"), f"--runs-dir={tmp_path / 'runs'}"]
    assert main([*words, "--dry-run", "--no-steps"]) == 0
    shown = capsys.readouterr()
    assert "hf_abc" not in shown.out + shown.err
    assert "export HF_TOKEN=***" in (tmp_path / "bundle/submission.sh").read_text()
    assert not any("hf_abc" in path.read_text() for path in files_of(tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--bundle", "new"], "--bundle says something of a plan; give --plan or --dry-run with it"),
        (["--dry-run", "--bundle", "full"], "--bundle full is not empty; choose another folder"),
        (["--dry-run", "--bundle", "full/file"], "--bundle full/file cannot be written (File exists)"),
    ],
)
def test_a_folder_that_cannot_take_a_bundle_is_refused(tmp_path, capsys, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert main([TINY, *words]) == 2
    assert complaint in capsys.readouterr().err
