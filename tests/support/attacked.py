"""Export and resume runs whose newest checkpoint was made by somebody who means harm, as real commands."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

from support.malice import CASES, RunFolder
from support.runs_for_tests import LAUNCH, REPOSITORY, environment, launch

RECIPE = REPOSITORY / "tests/support/recipes/trouble.py"
MOST_DATA_BYTES = 3 * 2**30  # of each process: torch alone takes a third of it
SECONDS = 180
REFUSED = (1, 2, 4)
COMMANDS = {"export": ["checkpoints", "export", "run", "exported"], "resume": ["resume", "run"]}


def make_template(folder: Path) -> Path:
    """A run that was stopped with two commits."""
    result = launch(str(RECIPE), "--name", "run", "stop_after=8", runs_dir=folder)
    assert result.returncode == 75, result.stderr
    return folder / "run"


def wrongs(template: Path, case: str, root: Path) -> list[str]:
    """What is wrong with how the commands take that case: nothing, if all is right."""
    run, outside, canary = root / "runs/run", root / "outside", root / "canary"
    shutil.copytree(template, run)
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    CASES[case](RunFolder(run, outside, canary))
    before = _names(outside)
    found = [f"{name}: {wrong}" for name, words in COMMANDS.items() for wrong in _wrongs_of(words, root)]
    if canary.exists():
        found.append("something was executed")
    if _names(outside) != before or (outside / "victim").read_bytes() != b"untouched":
        found.append("something outside was touched")
    if strange := {path.name for path in root.iterdir()} - {"runs", "outside", "exported"}:
        found.append(f"{strange} were made")
    return found


def _wrongs_of(words: list[str], root: Path) -> list[str]:
    try:
        result = subprocess.run(
            [*LAUNCH, *words], cwd=root, env=environment(root / "runs"), capture_output=True, text=True,
            timeout=SECONDS, preexec_fn=_limit_memory,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [f"it takes longer than {SECONDS} s"]
    lines = result.stderr.splitlines()
    found = []
    if not all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr):
        found.append("it steers the terminal")
    if "Traceback" in result.stderr:
        found.append(f"a traceback: {lines[-1]}")
    if result.returncode not in (0, *REFUSED):
        found.append(f"exit code {result.returncode}: {lines[-1:]}")
    if result.returncode in REFUSED and not lines[-1].startswith(("launch: ", "failed: ")):
        found.append(f"the last line is {lines[-1]!r}")
    return found


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA_BYTES, MOST_DATA_BYTES))


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
