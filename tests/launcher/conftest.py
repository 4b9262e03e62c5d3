from __future__ import annotations

from pathlib import Path

import pytest

from launcher.runs import Run, write_json


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has not been started."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    write_json(run.folder / "run.json", {"format": 1, "run": "run", "recipe": "x.py", "steps": 9})
    return run
