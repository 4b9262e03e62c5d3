from __future__ import annotations

import json
import subprocess
import sys

from launcher.environment import environment


def test_the_record_names_versions_and_machine_without_importing_torch(tmp_path):
    code = f"""
import json, sys
from pathlib import Path
from launcher.environment import environment
record = environment(Path({str(tmp_path)!r}))
print(json.dumps([record, sorted({{"torch", "transformers", "numpy"}} & sys.modules.keys())]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    record, imported = json.loads(result.stdout)
    assert imported == []
    assert record["packages"]["torch"]
    assert record["cores"] >= 1
    assert record["git_commit"] == ""


def test_the_commit_and_uncommitted_changes_are_recorded(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    clean = environment(tmp_path)
    assert len(clean["git_commit"]) == 40
    assert not clean["git_has_changes"]
    (tmp_path / "new.py").write_text("")
    assert environment(tmp_path)["git_has_changes"]


def test_no_value_of_an_environment_variable_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "canary-7d1f")
    assert "canary-7d1f" not in json.dumps(environment(tmp_path))
