"""Checkpoints made by somebody who means harm: nothing runs, nothing outside is touched, and people see one line."""

from __future__ import annotations

import pickle
import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from support.malice import CASES, Payload, RunFolder
from support.saving import assert_state, claim, start, state_of
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.posix_store import PosixStore
from checkpoints.restorer import restore
from checkpoints.strict_json import encode
from launcher import cli

MOST_BYTES = 300 * 2**20
READERS = (
    ("status", "run"), ("ls",), ("checkpoints", "ls", "run"), ("checkpoints", "verify", "run"),
    ("checkpoints", "digest", "run"),
)  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "run"
    alone = start(PosixStore(root / "checkpoints"))
    alone.save(10)
    alone.save(20)
    alone.close()
    record = {"format": 1, "run": "run", "recipe": "/nowhere/recipe.py", "steps": 60}
    (root / "run.json").write_bytes(encode(record))
    return root


def test_there_are_at_least_fifty_ways_to_mean_harm() -> None:
    assert len(CASES) >= 50


def test_the_payload_works_where_something_unpickles_it(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", CASES)
def test_a_malicious_checkpoint_is_inert(
    template: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, outside, canary = tmp_path / "runs/run", tmp_path / "outside", tmp_path / "canary"
    shutil.copytree(template, run)
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    CASES[name](RunFolder(run, outside, canary))
    before = sorted(path.name for path in outside.rglob("*"))
    tracemalloc.start()
    for command in READERS:
        code = cli.main([*command, "--runs-dir", str(run.parent)])
        said = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in said.out + said.err), command
        assert code == 0 or len(said.err.splitlines()) == 1 or "verify" in command, said.err
    pinned_or_refused(run)
    restored_or_refused(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_BYTES
    assert not canary.exists()
    assert sorted(path.name for path in outside.rglob("*")) == before
    assert (outside / "victim").read_bytes() == b"untouched"


def pinned_or_refused(run: Path) -> None:
    log = CommitLog(PosixStore(run / "checkpoints"), deadline_seconds=0.3)  # `launch` tries for a minute
    with suppress(CheckpointError):
        entry = log.read()
        assert entry is not None
        log.pin(entry.live[-1].n)


def restored_or_refused(run: Path) -> None:
    """A start either gets one of the two states whole, or is refused."""
    store, state = PosixStore(run / "checkpoints"), state_of(-1)
    try:
        restored = restore(
            store=store, channel=Channel(HashStore(), "a"), claim=claim(store, log_seconds=0.3), rank=0, world_size=1,
            state=state, deadline_seconds=60,
        )  # fmt: skip
    except CheckpointError:
        return
    step = restored.commit.step if restored else -1
    assert step in (10, 20)
    assert_state(state, step)
