"""The benchmarks are run by hand; here only that they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "bench"


# The others import torch first.
@pytest.mark.parametrize("name", ["cli", "goodput", "loop", "plan", "restart", "start"])
def test_a_benchmark_says_how_it_is_used(name: str) -> None:
    said = subprocess.run([sys.executable, BENCHMARKS / name, "--help"], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert f"scripts/bench/{name}" in said.stdout
