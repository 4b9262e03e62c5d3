"""What each target would execute, whole: compared with texts that a person has read.

`scripts/test tests/launcher/test_golden.py --update-golden` writes them anew.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support.runs_for_tests import REPOSITORY

from launcher.cli import main

GOLDEN = REPOSITORY / "tests/golden"
RECIPE = str(REPOSITORY / "recipes/llama_fsdp.py")
TARGETS = {
    "local-1x8": ["--on", "local", "--gpus", "8"],
    "slurm-1x8": ["--on", "slurm", "slurm.gpus=gpus-per-node", "--gpus", "8"],
    "slurm-2x8-profile": ["--on", "example", "--nodes", "2", "--gpus", "8"],
    "slurm-4x4-cpus": ["--on", "slurm", "slurm.gpus=none", "slurm.least_nodes=2", "--nodes", "4", "--gpus", "4"],
    "slurm-2x8-container": [
        "--on", "example", "--nodes", "2", "--gpus", "8", "slurm.container=nvcr.io#nvidia/pytorch:25.01-py3",
        "slurm.python=/opt/venv/bin/python",
    ],
    "spot-2x4": ["--on", "spot", "--spot-seed", "3", "--nodes", "2", "--gpus", "4"],
    "torchx-1x8": [
        "--on", "torchx:slurm", "torchx.arguments=partition=gpu", "torchx.gpus=true", "torchx.memory=200000",
        "--gpus", "8",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), TARGETS.items(), ids=list(TARGETS))
def test_what_would_be_executed_is_what_was_read(tmp_path, capsys, monkeypatch, pytestconfig, name, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "profiles", "profiles")
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    for variable in ("PYTHONPATH", "CUBLAS_WORKSPACE_CONFIG", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    command = [RECIPE, "--plan", *words, "--name", "my-run", "--runs-dir", "/shared/runs", "--bundle", "bundle"]
    assert main(command) == 0, capsys.readouterr().err
    files = [path for path in sorted(Path("bundle").iterdir()) if path.is_file() and path.name != "code.txt"]
    text = "".join(f"==> {path.name}\n{path.read_text()}" for path in files)
    golden = GOLDEN / f"{name}.txt"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(text)
    assert text == golden.read_text()
