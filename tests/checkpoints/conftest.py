from __future__ import annotations

import uuid

import pytest
from support.object_server import BUCKET, environment


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store on the server."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
