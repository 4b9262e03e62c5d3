"""Servers that imitate a cloud's object storage on loopback: second opinions of what a store must be told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUCKET = "checkpoints"
START_SECONDS = 60.0
# Azurite's account and key are constants of the program, as they were in Microsoft's emulator.
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_PROGRAMS = {"azurite": "azurite-blob", "s3rver": "s3rver"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """An empty bucket, and what a client needs to use it."""

    url: str
    environment: Mapping[str, str]


def why_not(name: str) -> str:
    """Why the server of that name cannot be started, and what to do; nothing where it can."""
    if name == "moto":
        is_there = all(map(importlib.util.find_spec, ("moto", "flask_cors")))
        return "" if is_there else "moto is not installed; scripts/setup --dev does it"
    program = _PROGRAMS[name]
    return "" if shutil.which(program) else f"{program} is not on the PATH; npm install -g {name} brings it"


@contextmanager
def moto() -> Iterator[Bucket]:
    """S3, in memory."""
    with _server(lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]) as port:
        _request("PUT", f"http://127.0.0.1:{port}/{BUCKET}")
        yield Bucket(url=f"s3://{BUCKET}", environment=_s3_environment(port, "testing"))


@contextmanager
def s3rver(folder: Path) -> Iterator[Bucket]:
    """S3 without preconditions: of two writers of a key each is told that it was first."""
    words = ["s3rver", "-d", str(folder), "-a", "127.0.0.1", "--configure-bucket", BUCKET]
    with _server(lambda port: [*words, "-p", str(port)]) as port:
        yield Bucket(url=f"s3://{BUCKET}", environment=_s3_environment(port, "S3RVER"))


@contextmanager
def azurite() -> Iterator[Bucket]:
    """Azure's blob storage, in memory."""
    words = ["azurite-blob", "--blobHost", "127.0.0.1", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    with _server(lambda port: [*words, "--disableTelemetry", "--blobPort", str(port)]) as port:
        url = f"http://127.0.0.1:{port}"
        _request("PUT", f"{url}/{_ACCOUNT}/{BUCKET}?restype=container&{_account_signature()}")
        environment = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}
        yield Bucket(url=f"az://{BUCKET}", environment=environment)


def _s3_environment(port: int, key: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }


def _account_signature() -> str:
    """The query of a request that may make containers (Azure Storage, "Create an account SAS")."""
    fields = {"sp": "c", "ss": "b", "srt": "c", "st": "", "se": "2100-01-01", "sip": "", "spr": "", "sv": "2018-11-09"}
    text = "\n".join([_ACCOUNT, *fields.values(), ""])
    signature = hmac.new(base64.b64decode(_ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    return urllib.parse.urlencode({**{k: v for k, v in fields.items() if v}, "sig": base64.b64encode(signature)})


def _request(method: str, url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method=method, data=b""), timeout=START_SECONDS).close()


@contextmanager
def _server(command: Callable[[int], Sequence[str]]) -> Iterator[int]:
    """The port of what the command starts, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command(port)[0]} does not answer (exit code {process.poll()})")
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
