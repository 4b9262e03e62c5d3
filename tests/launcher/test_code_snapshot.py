from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher import code_snapshot
from launcher.code_snapshot import code_of, copy, digests_of_copy
from launcher.errors import UsageError

SECRETS = (
    ".env", ".env.local", "prod.env", "server.pem", "tls.key", "id_rsa", "id_ed25519.pub", "credentials.json", ".netrc",
    ".npmrc", ".pypirc", "client_secret.json", "hf.token", ".envrc", "token", "stored_tokens", "SERVER.KEY", "a.kdbx",
)  # fmt: skip
CANARY = "canary-7d1f"


def repository(folder: Path) -> Path:
    recipe = folder / "work/recipe.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("committed = 1\n")
    (folder / ".gitignore").write_text("ignored.py\n")
    (folder / "ignored.py").write_text("")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return recipe


def test_uncommitted_and_untracked_files_are_taken_and_ignored_ones_are_not(tmp_path):
    recipe = repository(tmp_path / "tree")
    recipe.write_text("changed = 2\n")
    (recipe.parent / "new.py").write_text("")
    copy(code_of(recipe), tmp_path / "code")
    assert (tmp_path / "code/work/recipe.py").read_text() == "changed = 2\n"
    assert (tmp_path / "code/work/new.py").exists()
    assert not (tmp_path / "code/ignored.py").exists()
    assert not (tmp_path / "code/.git").exists()


@pytest.mark.parametrize("in_git", [True, False])
def test_no_secret_is_copied(tmp_path, in_git):
    tree = tmp_path / "tree"
    recipe = repository(tree) if in_git else tree / "work/recipe.py"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text("")
    for name in SECRETS:
        (recipe.parent / name).write_text(CANARY)
    (tree / ".aws").mkdir()
    (tree / ".aws/config").write_text(CANARY)
    (tree / "wandb").mkdir()
    (tree / "wandb/settings.txt").write_text(CANARY)
    (recipe.parent / "notes.txt").symlink_to(".env")
    outside = tmp_path / "outside.txt"
    outside.write_text(CANARY)
    (recipe.parent / "link.txt").symlink_to(outside)
    copy(code_of(recipe), tmp_path / "code")
    leaked = [
        path for path in (tmp_path / "code").rglob("*") if path.is_file() and CANARY in path.read_text(errors="replace")
    ]
    assert leaked == []


def test_what_is_left_out_is_listed(tmp_path, monkeypatch):
    recipe = repository(tmp_path / "tree")
    (recipe.parent / "weights.bin").write_bytes(b"0" * 1000)
    (recipe.parent / ".env").write_text(CANARY)
    monkeypatch.setattr(code_snapshot, "MAX_FILE_BYTES", 999)
    assert sorted(code_of(recipe).left_out) == ["work/.env", "work/weights.bin"]


def test_a_recipe_that_git_ignores_is_taken_all_the_same(tmp_path):
    repository(tmp_path / "tree")
    assert "ignored.py" in code_of(tmp_path / "tree/ignored.py").files


def test_runs_in_the_tree_are_no_code_and_a_package_called_runs_is(tmp_path):
    recipe = repository(tmp_path / "tree")
    run = recipe.parent / "out/first"
    (run / "code").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "code/recipe.py").write_text("")
    (recipe.parent / "runs").mkdir()
    (recipe.parent / "runs/__init__.py").write_text("")
    names = code_of(recipe).files
    assert "work/runs/__init__.py" in names
    assert not [name for name in names if name.startswith("work/out")]


def test_a_file_of_the_users_wins_over_one_of_ours(tmp_path):
    recipe = repository(tmp_path / "tree")
    own = tmp_path / "tree/recipes/gpt_tiny.py"
    own.parent.mkdir()
    own.write_text("mine = 1\n")
    assert code_of(recipe).files["recipes/gpt_tiny.py"] == own


def test_scripts_stay_executable_and_odd_names_are_copied(tmp_path):
    recipe = repository(tmp_path / "tree")
    script = recipe.parent / "prepare.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    odd = Path(os.fsdecode(b"odd \xff\n.py"))
    (recipe.parent / odd).write_text("")
    copy(code_of(recipe), tmp_path / "code")
    assert os.access(tmp_path / "code/work/prepare.sh", os.X_OK)
    assert (tmp_path / "code/work" / odd).exists()


def test_a_snapshot_that_fails_leaves_no_folder_that_looks_whole(tmp_path):
    recipe = repository(tmp_path / "tree")
    tree = code_of(recipe)
    recipe.unlink()
    with pytest.raises(UsageError, match=r"recipe.py cannot be copied"):
        copy(tree, tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_our_own_packages_come_with_a_recipe_from_elsewhere(tmp_path):
    recipe = tmp_path / "mine/recipe.py"
    recipe.parent.mkdir()
    recipe.write_text("")
    copy(code_of(recipe), tmp_path / "code")
    for name in ("recipe.py", "launcher/cli.py", "cluster/node.py", "checkpoints/log.py", "recipes/gpt_tiny.py"):
        assert (tmp_path / "code" / name).is_file(), name


def test_the_digests_of_a_copy_are_those_of_its_tree(tmp_path):
    recipe = repository(tmp_path / "tree")
    tree = code_of(recipe)
    copy(tree, tmp_path / "code")
    assert digests_of_copy(tmp_path / "code") == tree.digests()
    recipe.write_text("changed\n")
    assert digests_of_copy(tmp_path / "code") != code_of(recipe).digests()


def test_a_tree_that_is_not_code_is_refused(tmp_path, monkeypatch):
    recipe = repository(tmp_path / "tree")
    monkeypatch.setattr(code_snapshot, "MAX_FILES", 3)
    with pytest.raises(UsageError, match="too much for a code snapshot"):
        code_of(recipe)


def test_a_large_file_is_left_out(tmp_path, monkeypatch):
    recipe = repository(tmp_path / "tree")
    (recipe.parent / "weights.txt").write_bytes(b"0" * 1000)
    monkeypatch.setattr(code_snapshot, "MAX_FILE_BYTES", 999)
    assert "work/weights.txt" not in code_of(recipe).files
