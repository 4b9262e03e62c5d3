"""`launch rehearse` lets recipes pass that can be resumed, and names the step at which others go wrong."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
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


def test_a_shipped_recipe_passes_as_on_a_spot_machine_and_leaves_nothing_behind(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as temporary:  # not below tmp_path: the paths of sockets must be short
        monkeypatch.setenv("TMPDIR", temporary)
        code, found = rehearse(TINY, "--on", "spot", folder=tmp_path)
        assert code == 0, found
        assert list(Path(temporary).iterdir()) == []
    assert found["is_equal"]
    assert found["first_differing_step"] is found["folder"] is None
    _, rank, everything, notice, ending, other_ranks = found["checks"]
    assert rank["delivery"]["left_seconds"] is None
    assert everything["delivery"]["resumed_after"] is not None
    # A save of the steps that were done: nothing is done again.
    assert notice["delivery"]["resumed_after"] >= notice["delivery"]["step"]
    assert ending["remark"] == "equal"
    assert other_ranks["remark"].startswith("every sample once")


def test_a_dry_run_of_a_cluster_job_answers_all_on_a_machine_without_a_cluster_and_makes_nothing(tmp_path):
    job = [TINY, "--name", "dry", "--nodes", "2", "--gpus", "8", "batch.size=16", "--dry-run"]
    shown = launch(*job, "--no-steps", runs_dir=tmp_path)
    result = launch(*job, "--json", runs_dir=tmp_path)
    assert (shown.returncode, result.returncode) == (0, 0), shown.stderr + result.stderr
    found = json.loads(result.stdout)
    script = found["submission"]["files"]["submission.sh"]
    assert "#SBATCH --gpus-per-node=8\n" in script
    assert shown.stdout.startswith(script)
    assert "not checked here: whether the nodes of Slurm have GPUs" in shown.stderr
    assert found["memory"]["traced"]["bytes"] > 4 * 4 * 500_000  # parameters, gradients and two moments
    scale, trained, saved, restored, speed = found["steps"]
    assert scale.endswith("and at the scale of a laptop (there is no GPU here whose kind is known)")
    assert trained.startswith("trained    3 steps of 2 samples on cpu in fp32: loss 5.")
    assert saved.endswith("and read back: intact")
    assert restored.startswith("restored   after step 3, every byte checked; loss ")
    assert re.fullmatch(r"speed +[\d,]+ tokens/s at the scale .*: no MFU follows .* stay as they are", speed)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_recipe_that_fails_says_why_in_its_last_line(tmp_path):
    result = launch(f"{TROUBLE}:OWN_ERROR", "--dry-run", runs_dir=tmp_path)
    assert result.returncode == 1
    assert "ZeroDivisionError: the user's own mistake" in result.stderr.splitlines()[-1]
