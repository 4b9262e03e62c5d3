"""No secret of the environment, or beside the recipe, gets into the run folder or into a command line."""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from support.runs_for_tests import REPOSITORY, launch, start, wait_for_step

from launcher.rehearsal.processes import Processes

VARIABLES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_PASSWORD")
FILES = (".env", "id_rsa", "x.pem")


def holders(folder: Path, secret: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def command_lines() -> Iterator[tuple[int, bytes]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield int(folder.name), (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue


def test_no_secret_is_in_a_run_folder_or_in_a_command_line(tmp_path, monkeypatch):
    secret = secrets.token_hex(16)
    for name in VARIABLES:
        monkeypatch.setenv(name, secret)
    recipe = tmp_path / "work/recipe.py"
    recipe.parent.mkdir()
    shutil.copy(REPOSITORY / "tests/support/recipes/trouble.py", recipe)
    for name in FILES:
        (recipe.parent / name).write_text(secret)
    runs = tmp_path / "runs"

    launcher = start(str(recipe), "--gpus", "2", "--name", "stopped", "steps=1000000", runs_dir=runs)
    wait_for_step(runs / "stopped", 5)
    lines = dict(command_lines())
    pids = [pid for found in Processes(launcher.pid).find().values() for pid in found]
    launcher.send_signal(signal.SIGTERM)
    said = "".join(launcher.communicate(timeout=300))
    assert launcher.returncode == 75, said
    assert len(set(pids) & set(lines)) >= 4, "node, agent and ranks were looked at"
    assert [line for line in lines.values() if secret.encode() in line] == []

    failed = launch(f"{recipe}:OWN_ERROR", "--gpus", "2", "--name", "failed", runs_dir=runs)
    assert failed.returncode == 1, failed.stderr
    assert secret not in said + failed.stdout + failed.stderr
    for name in ("stopped", "failed"):
        assert (runs / name / "code").is_dir()
        assert holders(runs / name, secret.encode()) == []
    assert len(holders(recipe.parent, secret.encode())) == len(FILES), "what finds nothing above finds these"
