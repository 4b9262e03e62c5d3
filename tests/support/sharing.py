"""What the workers of a test run share, because it takes long to make."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder in which each worker has its own."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def make_once(path: Path, make: Callable[[], None]) -> Path:
    """The path, which `make` makes unless another worker has; while one does, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.made"), "a") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        if os.fstat(made.fileno()).st_size == 0:
            make()
            made.write("yes")
    return path
