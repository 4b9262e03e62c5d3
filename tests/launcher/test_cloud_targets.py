"""What the command line says of runs in clouds, on a machine that has no account, no network and no tool of theirs."""

from __future__ import annotations

import socket

import pytest
import yaml
from support.runs_for_tests import REPOSITORY, TINY

from launcher.cli import main

BUCKET = ("--checkpoints", "s3://bucket/runs")
POD = ("kubernetes.image=train:1", "kubernetes.volume=runs", "kubernetes.mount=/tmp")


@pytest.fixture(autouse=True)
def _without_anything(tmp_path, monkeypatch):
    def no_network(*_: object) -> None:
        raise AssertionError("somebody wants to reach the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("KUBECONFIG", raising=False)


def words(tmp_path, *more: str) -> list[str]:
    return [str(REPOSITORY / TINY), "--name", "r1", "--runs-dir", str(tmp_path / "runs"), *more]


@pytest.mark.parametrize(
    ("more", "sent", "unchecked"),
    [
        (
            ("--on", "sky", *BUCKET, "--no-steps"),
            "sky jobs launch --yes --detach-run",
            "whether the machine may write s3://bucket/",
        ),
        (
            ("--on", "kubernetes", *POD, "--nodes", "2", "--no-steps"),
            "POST /apis/jobset.x-k8s.io/",
            "whether nodes can pull train:1",
        ),
        (("--on", "torchx:mine"), "torchx run -s mine", "whether mine takes it"),  # with real steps, here
    ],
    ids=["sky", "kubernetes", "torchx"],
)
def test_a_dry_run_shows_what_would_be_sent_and_what_it_could_not_check(tmp_path, capsys, more, sent, unchecked):
    assert main(words(tmp_path, *more, "--dry-run", "--no-steps")) == 0
    said = capsys.readouterr()
    content, _, command = said.out.partition("# is sent by\n")
    assert "r1-1" in str(yaml.safe_load(content))
    assert command.startswith(sent)
    assert f"not checked here: {unchecked}" in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("code", "said", "more"),
    [
        (2, "give --checkpoints s3://BUCKET/PREFIX", ("--on", "sky")),
        (2, "sky.accelerators='H10' is no accelerator", ("--on", "sky", *BUCKET, "sky.accelerators=H10")),
        (2, "did you mean us-east-1?", ("--on", "sky", *BUCKET, "sky.cloud=aws", "sky.region=us-eats-1")),
        (2, "--nodes 2 is more than --on sky has (1)", ("--on", "sky", *BUCKET, "--nodes", "2")),
        (2, "sky.secrets names NO_KEY, which is not set here", ("--on", "sky", *BUCKET, "sky.secrets=NO_KEY")),
        (3, "sky is not on this machine; install SkyPilot", ("--on", "sky", *BUCKET)),
        (2, "needs kubernetes.image", ("--on", "kubernetes", "kubernetes.volume=runs")),
        (2, "kubernetes.spot is a setting of --on kubernetes", ("--on", "local", "kubernetes.spot=true")),
        (2, "--nodes 2 is more than --on torchx has (1)", ("--on", "torchx:mine", "--nodes", "2")),
        (2, "--on torchx:aws_batch is no target: AWS Batch never starts", ("--on", "torchx:aws_batch", "--nodes", "2")),
        (2, "use --on sky sky.cloud=aws for one node", ("--on", "torchx", "torchx.scheduler=aws_batch")),
        (2, "--on aws_batch is no target: AWS Batch never starts", ("--on", "aws_batch", "--nodes", "2")),
        (2, "--on kubernetes for several", ("--on", "batch")),
        (2, "--on local has no setting scheduler", ("--on", "local:spot")),
        (2, "--spot-seed is for --on spot, and this is --on local", ("--on", "local", "--spot-seed", "1")),
        (2, "sky.use_spot is a setting of --on sky, and this is --on local", ("--on", "local", "sky.use_spot=true")),
        (2, "needs its cloud; give sky.cloud", ("--on", "sky", *BUCKET, "sky.region=us-east-1")),
        (2, "kubernetes.spot=true needs kubernetes.provider", ("--on", "kubernetes", *POD, "kubernetes.spot=true")),
        (2, "--checkpoints 's3://' is no place for checkpoints", ("--on", "sky", "--checkpoints", "s3://")),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(tmp_path, capsys, code, said, more):
    assert main(words(tmp_path, *more)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert said in captured.err
    assert not (tmp_path / "runs").exists()
