"""A store in a bucket of S3, Google Cloud Storage or Azure, or of anything that speaks one of their protocols."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from checkpoints.errors import KeyMissing, StoreError, StoreUnwritable, one_line
from checkpoints.store import Created, check_key

REQUEST_SECONDS = 60.0
RETRIES = 8
RETRY_SECONDS = 180.0
_PART_BYTES = 16 * 2**20  # S3 takes up to 10,000 parts: 156 GiB of one rank (S3 user guide, "Multipart upload limits")
_PARTS_AT_ONCE = 4
_PAUSE_SECONDS = 0.2
_BROKEN_OFF = re.compile(r"response body")
_SERVER_SAYS = re.compile(r"status code: (\d+ [A-Z][A-Za-z ]+)(?:.*?<Code>(\w+)</Code>)?", re.DOTALL)
_ASKS_FOR_A_ROLE = re.compile(r"latest/(?:api/token|meta-data)|computeMetadata|metadata/identity")
_NO_BUCKET = "the bucket is not there"
_DENIED = (PermissionDeniedError, UnauthenticatedError)

T = TypeVar("T")


class ObjectStore:
    """Keys are objects below a `scheme://bucket/prefix` URL, whose bucket is there.

    Credentials, region and endpoint are those of the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and the like)
    or of the machine. A request that fails in passing is tried again.
    """

    crosses_processes = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        is_plain = any(os.environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
        with _translated("open", url):
            self._bucket: Any = obstore.store.from_url(
                self.url,
                client_options={
                    "timeout": timedelta(seconds=REQUEST_SECONDS),
                    "connect_timeout": timedelta(seconds=REQUEST_SECONDS / 6),
                    "allow_http": is_plain,
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )

    def create(self, key: str, data: bytes) -> Created:
        try:
            obstore.put(self._bucket, check_key(key), data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return Created.EXISTS  # our own, maybe, if the reply to an earlier try was lost
        except FileNotFoundError as error:
            raise StoreError("create", key, _NO_BUCKET) from error
        except BaseError as error:
            if not isinstance(error, _DENIED) and not _lacks_credentials(error):
                return Created.UNKNOWN
            raise StoreUnwritable("create", key, _reason(error)) from error
        return Created.OK

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        with _translated("put", check_key(key)):
            stream = iter(blocks)
            first: list[memoryview] = []
            while sum(map(len, first)) <= _PART_BYTES:
                block = next(stream, None)
                if block is None:
                    obstore.put(self._bucket, key, b"".join(first), use_multipart=False)
                    return
                first.append(block)
            self._upload(key, chain(first, stream))

    def _upload(self, key: str, blocks: Iterable[memoryview]) -> None:
        """In parts. An upload that is broken off, as by an exception of the blocks, never becomes an object."""
        size = 0

        def counted() -> Iterator[memoryview]:
            nonlocal size
            for block in blocks:
                size += len(block)
                yield block

        try:
            obstore.put(
                self._bucket,
                key,
                counted(),
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
        except BaseError:
            # The answer to the last request may be what was lost; nobody else writes this key.
            if not self._holds(key, size):
                raise

    def _holds(self, key: str, size: int) -> bool:
        with suppress(BaseError, FileNotFoundError):
            return int(obstore.head(self._bucket, key)["size"]) == size
        return False

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with _translated("get", check_key(key)):
            size = int(obstore.head(self._bucket, key)["size"])
            end = size if length is None else min(size, start + length)
            return bytes(self._range(key, start, end)) if start < end else b""

    def read_back(self, key: str, part_bytes: int) -> Iterator[memoryview]:
        with _translated("read back", check_key(key)):
            size = int(obstore.head(self._bucket, key)["size"])
            for start in range(0, size, part_bytes):
                yield memoryview(self._range(key, start, min(size, start + part_bytes)))

    def list(self, prefix: str) -> dict[str, int]:
        with _translated("list", prefix):
            pages = _whole(lambda: list(obstore.list(self._bucket, prefix)))
            return {item["path"]: item["size"] for page in pages for item in page}

    def delete(self, key: str) -> None:
        with suppress(KeyMissing), _translated("delete", check_key(key)):
            obstore.delete(self._bucket, key)

    def version(self, key: str) -> str:
        """Tells what is under the key from anything that was there before, or will be. Raises KeyMissing."""
        with _translated("look at", check_key(key)):
            found = obstore.head(self._bucket, key)
            return f"{found['e_tag']} {found['size']} {found['last_modified'].isoformat()}"

    def _range(self, key: str, start: int, end: int) -> Any:
        return _whole(lambda: obstore.get_range(self._bucket, key, start=start, end=end))


def _whole(ask: Callable[[], T]) -> T:
    """The answer. It is asked for again when it breaks off in the middle: obstore does that for some requests only."""
    for _ in range(RETRIES):
        try:
            return ask()
        except BaseError as error:
            if not _BROKEN_OFF.search(str(error)):
                raise
            time.sleep(_PAUSE_SECONDS)
    return ask()


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StoreError(operation, key, _NO_BUCKET) from error
        raise KeyMissing(operation, key) from error
    except _DENIED as error:
        raise StoreUnwritable(operation, key, _reason(error)) from error
    except BaseError as error:
        raise StoreError(operation, key, _reason(error)) from error


def _lacks_credentials(error: BaseException) -> bool:
    """Without any in the environment the machine is asked for those of its role; nothing was sent to the server."""
    return _ASKS_FOR_A_ROLE.search(str(error)) is not None


def _reason(error: BaseException) -> str:
    """What the server says, or what became of the connection, in one line."""
    if _lacks_credentials(error):
        return "there are no credentials in the environment, and this machine has no role"
    text = str(error).partition("Debug source:")[0]
    if said := _SERVER_SAYS.search(text):
        return " ".join(filter(None, said.groups())).strip()
    return one_line(text)[:300]
