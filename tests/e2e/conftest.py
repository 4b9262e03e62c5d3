from __future__ import annotations

from pathlib import Path

import pytest
from support.runs_for_tests import launch, small_words


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """The finished, never interrupted run of the small recipe with this many ranks and steps; made once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def run(ranks: int, steps: int = 60) -> Path:
        name = f"ranks-{ranks}-steps-{steps}"
        if not (folder / name).exists():
            result = launch(*small_words(ranks, steps=steps), "--name", name, runs_dir=folder)
            assert result.returncode == 0, result.stderr
        return folder / name

    return run
