"""The folder on a node's disk where a run keeps copies of its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.saving import claim
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.memory_store import MemoryStore
from checkpoints.store import Store
from launcher.errors import UsageError
from launcher.train.session import _open_copies


def opened(folder: Path, store: Store, restart: int = 0) -> Store:
    copies = _open_copies(str(folder), store, Channel(HashStore(), "run"), is_first=True, restart=restart)
    assert copies is not None
    return copies


def test_two_runs_whose_stores_have_one_url_do_not_share_it_and_one_run_finds_it_again(tmp_path: Path):
    stores = [MemoryStore(), MemoryStore()]
    for store in stores:
        claim(store)
    first, second = (opened(tmp_path, store).url for store in stores)
    assert stores[0].url == stores[1].url
    assert first != second
    claim(stores[0])
    assert opened(tmp_path, stores[0]).url == first


def test_one_that_cannot_be_written_is_refused_when_an_attempt_begins(tmp_path: Path):
    store, file = MemoryStore(), tmp_path / "file"
    claim(store)
    file.write_text("")
    with pytest.raises(UsageError, match=f"checkpoint.local_folder={file} cannot be written .*; use a folder of"):
        opened(file, store)
    opened(file, store, restart=1)  # training goes on, and its saves go to the store
    assert list((tmp_path / opened(tmp_path / "disk", store).url).iterdir()) == []
