"""What every store promises, and what a folder promises beyond that."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import imitations
from support.disk import Disk, Folder, Loss, materialise
from support.faulty_store import Crash
from support.imitations import Bucket, why_not

from checkpoints.errors import KeyMissing, NotExclusive, StoreError
from checkpoints.memory_store import MemoryStore
from checkpoints.posix_store import PosixStore
from checkpoints.store import Created, Store, open_store, probe

PAGE = 4096


@pytest.fixture(params=["file", "memory", "seaweedfs", "moto", "azurite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    match request.param:
        case "file":
            return open_store(f"file://{tmp_path}/deep/root")
        case "memory":
            return open_store(f"memory://{uuid.uuid4().hex}")
        case "seaweedfs":
            return open_store(request.getfixturevalue("bucket"))
        case imitation:
            return open_imitation(request.getfixturevalue(imitation), monkeypatch)


def open_imitation(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"{bucket.url}/{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def moto() -> Iterator[Bucket]:
    skip_without("moto")
    with imitations.moto() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def azurite() -> Iterator[Bucket]:
    skip_without("azurite")
    with imitations.azurite() as bucket:
        yield bucket


def skip_without(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)


def views(*blocks: bytes) -> list[memoryview]:
    return [memoryview(block) for block in blocks]


def test_a_created_key_holds_all_of_its_bytes(store: Store) -> None:
    assert store.create("log/1", b"first") is Created.OK
    assert store.get("log/1") == b"first"


def test_a_key_is_created_once_and_keeps_its_first_bytes(store: Store) -> None:
    store.create("log/1", b"first")
    assert store.create("log/1", b"second") is Created.EXISTS
    assert (
        store.create("log/1", b"first") is not Created.OK
    )  # a bucket cannot tell ours from another's of the same bytes
    assert store.get("log/1") == b"first"


def test_of_many_creators_exactly_one_wins(store: Store) -> None:
    answers: dict[int, Created] = {}
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        answers[number] = store.create("log/1", b"%d" % number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, answer in answers.items() if answer is Created.OK]
    assert store.get("log/1") == b"%d" % winners[0]
    assert len(winners) == 1


@pytest.mark.parametrize("sizes", [(0,), (1,), (PAGE,), (PAGE, PAGE), (3 * PAGE + 17,), (PAGE, 5, PAGE), (9_000_000,)])
def test_what_was_put_is_what_is_read(store: Store, sizes: tuple[int, ...]) -> None:
    blocks = [os.urandom(size) for size in sizes]
    whole = b"".join(blocks)
    store.put("data/save/file", views(*blocks))
    assert store.get("data/save/file") == whole
    part_bytes = 2 * PAGE * (1 + len(whole) // 2**20)
    assert b"".join(bytes(part) for part in store.read_back("data/save/file", part_bytes)) == whole
    assert store.list("data/save/") == {"data/save/file": len(whole)}


def test_ranges_are_cut_where_the_file_ends(store: Store) -> None:
    store.put("data/save/file", views(b"0123456789"))
    assert store.get("data/save/file", 3, 4) == b"3456"
    assert store.get("data/save/file", 8, 4) == b"89"
    assert store.get("data/save/file", 20, 4) == b""


@pytest.mark.parametrize("store", ["file", "seaweedfs", "moto", "azurite"], indirect=True)
@pytest.mark.parametrize("size", [PAGE, 40_000_000])
def test_a_put_whose_blocks_fail_leaves_nothing(store: Store, size: int) -> None:
    def blocks() -> object:
        yield memoryview(b"x" * size)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        store.put("data/save/file", blocks())  # type: ignore[arg-type]
    assert store.list("data/") == {}


@pytest.mark.parametrize("read", [lambda s: s.get("log/1"), lambda s: list(s.read_back("log/1", PAGE))])
def test_a_missing_key_is_told_from_a_broken_store(store: Store, read: Callable[[Store], object]) -> None:
    with pytest.raises(KeyMissing, match="log/1"):
        read(store)


def test_deleting_is_idempotent(store: Store) -> None:
    store.put("data/save/file", views(b"x"))
    store.delete("data/save/file")
    store.delete("data/save/file")
    assert store.list("") == {}


def test_a_list_holds_the_keys_below_its_prefix_only(store: Store) -> None:
    for key in ("log/1", "data/a/1", "data/a/2", "data/b/1"):
        store.create(key, b"x")
    assert set(store.list("data/a/")) == {"data/a/1", "data/a/2"}
    assert set(store.list("")) == {"log/1", "data/a/1", "data/a/2", "data/b/1"}
    assert store.list("nothing/") == {}


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", ".hidden", "-x", "a b", "a\nb", "a\0b", "ä", "x" * 129],
)
def test_a_key_that_could_leave_the_store_is_refused(store: Store, key: str) -> None:
    for operation in (
        lambda: store.create(key, b"x"),
        lambda: store.put(key, views(b"x")),
        lambda: store.get(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(StoreError, match="not a key"):
            operation()


def test_an_exclusive_store_passes_the_probe_and_keeps_nothing_of_it(store: Store) -> None:
    probe(store)
    assert store.list("") == {}


def test_a_store_that_overwrites_is_refused() -> None:
    class OverwritingStore(MemoryStore):
        def create(self, key: str, data: bytes) -> Created:
            self.put(key, views(data))
            return Created.OK

    with pytest.raises(NotExclusive, match="exclusively"):
        probe(OverwritingStore())


def test_a_server_that_ignores_the_precondition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("s3rver")
    with imitations.s3rver(tmp_path) as bucket, pytest.raises(NotExclusive, match="exclusively"):
        probe(open_imitation(bucket, monkeypatch))


def test_urls_open_the_store_they_name(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).url == str(tmp_path)
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    assert open_store("memory://x") is open_store("memory://x")
    for url in ("ftp://host/run", "file://host/run"):
        with pytest.raises(StoreError, match=url):
            open_store(url)


def test_no_symbolic_link_below_the_root_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data" / "linked").symlink_to(outside)
    (root / "data" / "file").symlink_to(outside / "secret")
    store = PosixStore(root)
    for operation in (
        lambda: store.get("data/linked/secret"),
        lambda: store.get("data/file"),
        lambda: store.put("data/linked/new", views(b"x")),
        lambda: store.delete("data/linked/secret"),
        lambda: list(store.read_back("data/file", PAGE)),
    ):
        with pytest.raises(StoreError):
            operation()
    assert set(store.list("data/")) == {"data/file", "data/linked"}  # they have their places, and nothing is in them
    assert os.listdir(outside) == ["secret"]


def test_a_pipe_in_the_place_of_a_file_blocks_nobody(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe")
    store = PosixStore(tmp_path)
    with pytest.raises(StoreError):
        store.get("data/pipe")
    with pytest.raises(StoreError):
        list(store.read_back("data/pipe", PAGE))


def test_a_temporary_that_lost_its_process_is_not_a_key(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.create("log/1", b"x")
    (tmp_path / "log" / ".2.abc").write_bytes(b"torn")
    assert store.list("log/") == {"log/1": 1}


def test_a_lost_reply_to_the_link_is_decided_by_the_number_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(*args: object, **kwargs: object) -> None:  # as an NFS client does that missed the first answer
        link(*args, **kwargs)  # type: ignore[arg-type]
        link(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", link_twice)
    assert PosixStore(tmp_path).create("log/1", b"x") is Created.OK


def test_deleting_a_save_removes_its_folder_but_not_the_shared_ones(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.put("data/save/file", views(b"x"))
    store.create("log/1", b"x")
    store.delete("data/save/file")
    store.delete("log/1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "log"]
    assert list((tmp_path / "data").iterdir()) == []


def test_folders_whose_maker_died_before_their_fsync_are_synchronized_by_the_next_writer(tmp_path: Path) -> None:
    folders = ("run", "run/root", "run/root/data", "run/root/data/save")
    for number in range(len(folders)):
        base, tree = tmp_path / str(number), Folder()
        base.mkdir()
        first = Disk(base, tree, lambda base=base, last=folders[number]: die_once_there(base / last))
        with first.recording(), pytest.raises(Crash):
            PosixStore(base / "run" / "root").put("data/save/first", views(b"x"))
        second = Disk(base, tree)
        with second.recording():
            PosixStore(base / "run" / "root").put("data/save/second", views(b"whole"))
        materialise(tree, base / "after", Loss.ALL)
        assert PosixStore(base / "after" / "run" / "root").get("data/save/second") == b"whole"


def die_once_there(folder: Path) -> None:
    if folder.exists():
        raise Crash


def test_a_folder_is_synchronized_once_by_a_store(tmp_path: Path) -> None:
    for name in ("run", "run/root", "run/root/log"):
        (tmp_path / name).mkdir()
    calls: list[None] = []
    log, root, run = Folder(), Folder(), Folder()
    root.entries, run.entries = {"log": log}, {"root": root}
    with Disk(tmp_path, Folder(entries={"run": run}), lambda: calls.append(None)).recording():
        store = PosixStore(tmp_path / "run" / "root")
        store.create("log/1", b"x")
        first = len(calls)
        store.create("log/2", b"x")
    assert first - (len(calls) - first) == 3  # the fsyncs for `run`, `root` and `log`
