"""What the README and the docs tell people to type: every command is parsed, every recipe and setting resolved.

The commands of a first run are typed for real: here those of `gpt_tiny`, in `e2e/test_qlora.py` those of the flagship.
"""

from __future__ import annotations

import re
import shlex

import pytest
from support.pages import README, RECIPES, commands_of, first_script_of
from support.runs_for_tests import REPOSITORY, launch, status

from launcher.cli import COMMANDS, parse_words
from launcher.loading import load
from launcher.targets import choose_target

PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]


TYPED = [(page.name, command) for page in PAGES for command in commands_of(page)]


@pytest.mark.parametrize(("page", "command"), [t for t in TYPED if re.search(r"(^|/)launch ", t[1])])
def test_every_launch_command_in_the_docs_is_one(page, command):
    words = shlex.split(re.sub(r"^.*?launch ", "", command), comments=True)
    name, arguments = parse_words(words)
    assert name in COMMANDS
    if name in ("train", "show") and (REPOSITORY / arguments.recipe).exists():
        words = arguments.overrides
        if name == "train":
            words = choose_target(arguments.on, arguments.nodes or 1, words, before={}).words
        load(str(REPOSITORY / arguments.recipe), words, laptop=True)


@pytest.mark.parametrize(("page", "command"), [t for t in TYPED if t[1].startswith("scripts/")])
def test_every_script_in_the_docs_exists(page, command):
    assert (REPOSITORY / command.split()[0]).stat().st_mode & 0o100


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (REPOSITORY / target).exists(), target


def test_the_test_command_of_the_readme_is_what_ci_runs():
    assert "scripts/test" in commands_of(README)
    assert "exec scripts/test" in (REPOSITORY / ".ci/run").read_text()


def test_the_first_steps_of_the_readme_work_as_they_are_written(tmp_path):
    first_steps = [c for c in commands_of(README) if "first" in shlex.split(c)]
    assert len(first_steps) == 3
    for command in first_steps:
        result = launch(*shlex.split(command)[1:], runs_dir=tmp_path)
        assert result.returncode == 0, result.stderr
    assert status(tmp_path / "first")["state"] == "SUCCEEDED"


def test_the_recipe_of_ones_own_in_the_docs_learns_what_it_says(tmp_path):
    (tmp_path / "spirals.py").write_text(first_script_of(RECIPES))
    (command,) = [c for c in commands_of(RECIPES) if "spirals.py" in c]
    result = launch(*shlex.split(command)[1:], runs_dir=tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "held-out perplexity 1.00 at step 400" in result.stderr
