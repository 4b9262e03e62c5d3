"""Buckets that a new run cannot have its checkpoints in: one line, before anything is made."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
from support import imitations
from support.object_server import BUCKET, SECRET, environment, proxy
from support.runs_for_tests import REPOSITORY, TINY

from checkpoints import object_store
from launcher.cli import main

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def refused(capsys, tmp_path, url: str) -> str:
    code = main([str(REPOSITORY / TINY), "--checkpoints", url, "--name", "r1", "--runs-dir", str(tmp_path / "runs")])
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1), captured.err
    assert not (tmp_path / "runs").exists()
    return str(captured.err)


NO_ROLE = {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("removed", "added", "lies", "said"),
    [
        ((), {"AWS_SECRET_ACCESS_KEY": "wrong"}, False, "(403 Forbidden SignatureDoesNotMatch); make the bucket"),
        (("AWS_SECRET_ACCESS_KEY",), {}, False, "Missing SecretAccessKey"),
        (KEYS, NO_ROLE, False, "no credentials in the environment, and this machine has no role); export AWS_ACCESS_"),
        ((), {}, True, "cannot create a file exclusively"),
    ],
    ids=["not-writable", "half-a-key", "no-credentials", "not-exclusive"],
)
def test_a_bucket_that_cannot_keep_checkpoints_is_refused(
    capsys, tmp_path, monkeypatch, server, removed, added, lies, said
):
    monkeypatch.setattr(object_store, "RETRIES", 0)
    with proxy(server, lambda _: "lie") if lies else nullcontext((server, None)) as (port, _):
        for name, value in {**environment(port), **added}.items():
            monkeypatch.setenv(name, value)
        for name in removed:
            monkeypatch.delenv(name)
        line = refused(capsys, tmp_path, f"s3://{BUCKET}/runs")
    assert said in line
    assert f"s3://{BUCKET}/runs/r1" in line
    assert not {SECRET, "wrong"} & set(re.findall(r"\w+", line))


@pytest.mark.skipif(bool(imitations.why_not("moto")), reason=imitations.why_not("moto"))
def test_a_bucket_that_is_not_there_is_refused(capsys, tmp_path, monkeypatch):
    with imitations.moto() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        line = refused(capsys, tmp_path, "s3://nowhere/runs")
    assert "--checkpoints s3://nowhere/runs/r1 cannot be written (the bucket is not there); " in line
    assert "make the bucket, and let AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY write it" in line


def test_a_folder_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "choose another folder" in refused(capsys, tmp_path, str(tmp_path / "file"))
