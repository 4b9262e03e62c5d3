"""`launch rehearse` lets recipes pass that can be resumed, and names the step at which others go wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.runs_for_tests import REPOSITORY, TINY, launch

FORGETFUL = REPOSITORY / "tests/support/recipes/forgetful.py"
TROUBLE = REPOSITORY / "tests/support/recipes/trouble.py"


def rehearse(*words: str, folder: Path) -> tuple[int, dict[str, Any]]:
    result = launch("rehearse", *words, "--json", runs_dir=folder, timeout=300)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.mark.parametrize("name", ["STREAM", "GLOBAL", "GENERATOR"])
def test_a_recipe_that_forgets_fails_with_the_first_step_that_differs(tmp_path, name):
    code, found = rehearse(f"{FORGETFUL}:{name}", folder=tmp_path)
    assert code == 1
    *others, last = found["checks"]
    assert [check["is_equal"] for check in others] == [True] * len(others)
    assert last["difference"].startswith("loss ")
    # A step that was done before a stop, and was not lost, tells nothing.
    assert found["first_differing_step"] == last["step"] == last["delivery"]["resumed_after"] + 1
    shutil.rmtree(found["folder"])


def test_a_shipped_recipe_passes_as_on_a_spot_machine_and_leaves_nothing_behind(tmp_path):
    code, found = rehearse(TINY, "--on", "spot", folder=tmp_path)
    assert code == 0, found
    assert found["is_equal"]
    assert found["first_differing_step"] is found["folder"] is None
    _, rank, everything, notice, ending, other_ranks = found["checks"]
    assert rank["delivery"]["left_seconds"] is None
    assert everything["delivery"]["resumed_after"] is not None
    # A save of the steps that were done: nothing is done again.
    assert notice["delivery"]["resumed_after"] >= notice["delivery"]["step"]
    assert ending["remark"] == "equal"
    assert other_ranks["remark"].startswith("every sample once")


def test_a_dry_run_trains_saves_and_restores_here_and_makes_nothing(tmp_path):
    shown = launch(TINY, "--name", "dry", "--dry-run", "--no-steps", runs_dir=tmp_path)
    result = launch(TINY, "--name", "dry", "--dry-run", runs_dir=tmp_path)
    assert (result.returncode, result.stdout) == (0, shown.stdout), result.stderr
    scale, trained, saved, restored, speed = result.stderr.splitlines()[-5:]
    assert scale.endswith("and at the scale of a laptop (the run has no GPU)")
    assert trained.startswith("trained    3 steps of 2 samples on cpu in fp32: loss 5.")
    assert saved.endswith("and read back: intact")
    assert restored.startswith("restored   after step 3, every byte checked; loss ")
    assert re.fullmatch(r"speed +[\d,]+ tokens/s at the scale .*: no MFU follows .* stay as they are", speed)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_recipe_that_fails_says_why_in_its_last_line(tmp_path):
    result = launch(f"{TROUBLE}:OWN_ERROR", "--dry-run", runs_dir=tmp_path)
    assert result.returncode == 1
    assert "ZeroDivisionError: the user's own mistake" in result.stderr.splitlines()[-1]
