"""Training data that is an object in a bucket: each machine keeps a copy of it, which its ranks share."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import blake3

from checkpoints.errors import KeyMissing, StoreError, StoreUnwritable
from checkpoints.object_store import ObjectStore
from launcher.errors import UsageError
from launcher.train.cache import cache_folder, locked

KEPT_BYTES = 50 * 2**30
RECENT_SECONDS = 3600.0
_PART_BYTES = 16 * 2**20
_DIGEST, _PARTIAL = ".digest", ".partial"  # beside the copy, whose name begins with a letter or a digit


def refuse_missing(url: str) -> None:
    """Raises UsageError when there is no such object, or it may not be read; StoreError when the storage fails."""
    with _told(url):
        store, name = _place(url)
        store.version(name)


def local_copy(url: str) -> Path:
    """A copy of the object as it is now, under its name; whole, for it is checked each time. Raises as above.

    The copies of a machine take up to KEPT_BYTES; those used last stay, and what was used in the last hour does.
    """
    with _told(url):
        store, name = _place(url)
        version = store.version(name)
        folder = cache_folder("data")
        entry = folder / blake3.blake3(f"{url}\0{version}".encode()).hexdigest()[:32]
        with locked(folder / f"{entry.name}.lock"):
            if not _is_whole(entry, name):
                with locked(folder / "lock"):
                    _make_room(folder)
                _download(store, name, version, entry)
            os.utime(entry)
        return entry / name


def _place(url: str) -> tuple[ObjectStore, str]:
    parent, _, name = url.rpartition("/")
    return ObjectStore(parent), name


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong is told of the URL."""
    try:
        yield
    except KeyMissing as error:
        raise UsageError(f"data.path={url}: there is no such object; correct the URL, or put it there") from error
    except StoreUnwritable as error:
        remedy = "give credentials in the environment that may read it, as AWS_ACCESS_KEY_ID"
        raise UsageError(f"data.path={url}: {error.reason}; {remedy}") from error
    except StoreError as error:
        raise StoreError("read", f"data.path={url}", error.reason) from error
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder that can"
        raise UsageError(
            f"data.path={url}: {cache_folder('data')} keeps no copy ({error.strerror}); {remedy}"
        ) from error


def _is_whole(entry: Path, name: str) -> bool:
    with suppress(OSError):
        found = blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(entry / name).hexdigest()
        return found == (entry / _DIGEST).read_text()
    return False


def _download(store: ObjectStore, name: str, version: str, entry: Path) -> None:
    entry.mkdir(exist_ok=True)
    hasher, partial = blake3.blake3(), entry / _PARTIAL
    with open(partial, "wb") as file:
        for part in store.read_back(name, _PART_BYTES):
            hasher.update(part)
            file.write(part)
    if store.version(name) != version:
        raise StoreError("read", name, "it changed meanwhile; start again")
    os.replace(partial, entry / name)
    (entry / _DIGEST).write_text(hasher.hexdigest())


def _make_room(folder: Path) -> None:
    """Remove the copies that were used longest ago."""
    entries = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    kept = 0
    for entry in entries:
        kept += sum(file.stat().st_size for file in entry.iterdir())
        if kept > KEPT_BYTES and time.time() - entry.stat().st_mtime > RECENT_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)
