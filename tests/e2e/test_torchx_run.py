"""A real run under a scheduler of torchx."""

from __future__ import annotations

import pytest
from support.runs_for_tests import launch, small_words, status, steps_of


def test_a_run_trains_to_its_end_under_a_scheduler_of_torchx(tmp_path):
    pytest.importorskip("torchx", reason="the extra torchx is not installed; scripts/setup --dev does it")
    result = launch(*small_words(2), "--name", "r1", "--on", "torchx:local_cwd", runs_dir=tmp_path)
    assert result.returncode == 0, result.stderr
    (attempt,) = status(tmp_path / "r1")["attempts"]
    assert (attempt["target"], attempt["state"]) == ("torchx", "SUCCEEDED")
    assert steps_of(tmp_path / "r1") == list(range(1, 61))
