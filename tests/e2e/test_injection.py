"""Hostile texts of user code and of the environment in a real run; tests/launcher/test_injection.py has many more."""

from __future__ import annotations

import shutil
import socket

import pytest
from support.runs_for_tests import REPOSITORY, launch

HOSTILE = "a:b; mkdir canary\n$(mkdir canary) 'x' \"y\" %s \x1b[31m é"


@pytest.mark.parametrize("name", ["RECIPE", "WORKER"])
def test_hostile_texts_run_nothing_and_stay_in_their_line(tmp_path, name):
    work = tmp_path / HOSTILE / "work"
    work.mkdir(parents=True)
    recipe = work / "hostile.py"
    shutil.copy(REPOSITORY / "tests/support/recipes/hostile.py", recipe)
    runs = tmp_path / HOSTILE / "runs"
    result = launch(f"{recipe}:{name}", runs_dir=runs, cwd=tmp_path)
    assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)
    lines = result.stderr.splitlines()
    cause = {"RECIPE": "the loss is nan; samples: ", "WORKER": "ValueError: Caught ValueError in DataLoader worker"}
    assert lines[-1].startswith(f"failed: rank 0 on {socket.gethostname()}: {cause[name]}"), result.stderr
    assert result.returncode == 1
    assert len([line for line in lines if line.startswith("at step 0 it answers ")]) == 1
    assert not [path for path in tmp_path.rglob("*") if path.name == "canary"]
    assert {path.name for path in tmp_path.iterdir()} == {HOSTILE}
