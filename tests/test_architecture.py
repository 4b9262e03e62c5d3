"""The arrows between the packages, the border between light and heavy, and the sizes that keep the code readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "cluster", "checkpoints", "recipes")
ARROWS = {
    "recipes": {"recipes", "launcher"},
    "launcher": {"launcher", "cluster", "checkpoints", "recipes"},
    "cluster": {"cluster"},
    "checkpoints": {"checkpoints"},
}
_HEAVY_CHECKPOINTS = ("saver", "restorer", "flat_shard", "object_store")
HEAVY = ("launcher/train/", "launcher/tree.py", *(f"checkpoints/{name}.py" for name in _HEAVY_CHECKPOINTS))
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


def imports_of_the_module_level(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield from imports(node)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path):
    package = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert used & set(PACKAGES) <= ARROWS[package]


@pytest.mark.parametrize("path", [p for p in FILES if not name_of(p).startswith(HEAVY)], ids=name_of)
def test_the_light_half_imports_only_the_standard_library(path):
    tree = ast.parse(path.read_text())
    for name in imports_of_the_module_level(tree):
        assert name.split(".")[0] in {*sys.stdlib_module_names, *PACKAGES}, f"{name_of(path)} imports {name}"
        assert not name.startswith("launcher.train"), f"{name_of(path)} imports {name}"
    assert "torch" not in {name.split(".")[0] for name in imports(tree)}


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()} - sys.stdlib_module_names - {
        "__main__", "sitecustomize", "usercustomize", "cython_runtime", "_virtualenv", "_distutils_hack",
    }  # fmt: skip


HELP = "from launcher.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
SHOW = "from launcher.cli import main\nmain(['show', 'gpt_tiny', 'optimizer.lr=1e-4'])"


# An editable install brings a finder, and PyYAML's C part the runtime of the Cython that built it.
PLUMBING = re.compile(r"__editable__.*|_cython_[\d_]+")


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        (HELP, {"launcher", "cluster", "checkpoints"}),
        (SHOW, {*PACKAGES, "yaml", "_yaml"}),
    ],
    ids=["help", "show"],
)
def test_the_command_line_loads_nothing_else(code, allowed):
    assert {name for name in modules_after(code) if not PLUMBING.fullmatch(name)} <= allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{name_of(path)}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_to_do(path):
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text())


SPEAKS = [p for p in FILES if name_of(p).startswith("launcher/") and name_of(p) != "launcher/terminal.py"]


@pytest.mark.parametrize("path", [p for p in SPEAKS if not name_of(p).startswith("launcher/train/")], ids=name_of)
def test_only_json_reaches_the_terminal_past_the_function_that_escapes(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert ast.unparse(node.args[0]).startswith("json.dumps("), f"{name_of(path)}:{node.lineno}"


def test_no_test_folder_is_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
