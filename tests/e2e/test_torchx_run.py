"""A real run under a scheduler of torchx."""

from __future__ import annotations

import pytest
from support.runs_for_tests import digests, launch, small_words, status


def test_a_run_trains_to_its_end_under_a_scheduler_of_torchx(tmp_path, undisturbed):
    pytest.importorskip("torchx", reason="the extra torchx is not installed; scripts/setup --dev does it")
    result = launch(*small_words(2), "--name", "r1", "--on", "torchx:local_cwd", runs_dir=tmp_path)
    assert result.returncode == 0, result.stderr
    (attempt,) = status(tmp_path / "r1")["attempts"]
    assert (attempt["target"], attempt["state"]) == ("torchx", "SUCCEEDED")
    assert digests(tmp_path / "r1") == digests(undisturbed(2))
