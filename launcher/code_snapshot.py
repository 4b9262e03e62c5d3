"""The code that a run uses, frozen into its folder: uncommitted changes included, secrets never."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

MAX_FILE_BYTES = 10 * 2**20
MAX_TOTAL_BYTES = 200 * 2**20
MAX_FILES = 20_000
OUR_PACKAGES = ("launcher", "cluster", "checkpoints", "recipes")
_TEXT_SUFFIXES = {".py", ".yaml", ".yml", ".json", ".jsonl", ".toml", ".txt", ".md", ".sh"}
_NEVER_FOLDERS = {
    ".git", ".venv", "venv", "node_modules", "__pycache__", ".aws", ".ssh", ".gnupg", ".kube", ".huggingface", "wandb",
}  # fmt: skip
_NEVER_FILES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.jks", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", "credentials*", "*secret*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials",
    ".dockerconfigjson", "token", "*.token", "stored_tokens", "*.pyc",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The files of a run's code by the path they have in the snapshot.

    root: the folder that the recipe's own files lie in.
    left_out: those of them that look like secrets, are too large, or lead out of the tree.
    """

    root: Path
    files: Mapping[str, Path]
    left_out: Sequence[str] = ()

    def digests(self) -> dict[str, str]:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(self.files.items())}


def code_of(recipe: Path) -> Tree:
    """The code that `recipe` runs with now: its git work tree, or its folder outside git, and our own packages.

    Raises UsageError when it is too large to be code.
    """
    recipe = recipe.resolve()
    root = root_of(recipe)
    names = _without_runs(root, _git_files(root) or list(_plain_files(root)))
    # The recipe itself is taken even where git ignores it.
    own = {name: root / name for name in [*names, str(recipe.relative_to(root))] if _is_wanted(root, root / name)}
    files = _our_packages(own) | own
    total = sum(path.stat().st_size for path in files.values())
    if total > MAX_TOTAL_BYTES or len(files) > MAX_FILES:
        raise UsageError(
            f"{root} holds {len(files)} files of {total / 1e6:.0f} MB in all, too much for a code snapshot; "
            "keep data elsewhere, or name it in .gitignore"
        )
    left_out = [name for name in names if name not in own and not name.endswith(".pyc") and (root / name).is_file()]
    return Tree(root=root, files=files, left_out=left_out)


def _our_packages(own: Mapping[str, Path]) -> dict[str, Path]:
    """The packages of this project that the recipe's tree does not hold."""
    ours = Path(__file__).resolve().parents[1]
    folders = [ours / package for package in OUR_PACKAGES if f"{package}/__init__.py" not in own]
    return {
        str(path.relative_to(ours)): path
        for folder in folders
        for path in folder.rglob("*")
        if _is_wanted(folder, path)
    }


def _without_runs(root: Path, names: Sequence[str]) -> list[str]:
    """The names that do not lie in a run folder: a run is no part of the code, and would grow with each snapshot."""
    folders = {folder for name in names for folder in Path(name).parents if folder.parts}
    runs = {
        folder for folder in folders if (root / folder / "run.json").is_file() and (root / folder / "code").is_dir()
    }
    return [name for name in names if runs.isdisjoint(Path(name).parents)]


def copy(tree: Tree, destination: Path) -> None:
    """Make `destination`, which is there whole or not at all. Raises UsageError for a file that cannot be copied."""
    staging = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    for name, path in tree.files.items():
        target = staging / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        except OSError as error:
            raise UsageError(f"{path} cannot be copied to {target}: {error.strerror}") from error
    os.rename(staging, destination)


def digests_of_copy(folder: Path) -> dict[str, str]:
    """The digest of each file of a snapshot."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _is_wanted(root: Path, path: Path) -> bool:
    """A regular file of a reasonable size, inside the tree, that does not look like a secret."""
    target, root_target = path.resolve(), root.resolve()  # a link is judged by its own name and by where it leads
    if not path.is_file() or not target.is_relative_to(root_target):
        return False
    if _is_secret(path.relative_to(root)) or _is_secret(target.relative_to(root_target)):
        return False
    return path.stat().st_size <= MAX_FILE_BYTES


def _is_secret(path: Path) -> bool:
    in_such_folder = not _NEVER_FOLDERS.isdisjoint(path.parts[:-1])
    return in_such_folder or any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in _NEVER_FILES)


def root_of(recipe: Path) -> Path:
    """The git work tree that holds the recipe, or else its folder."""
    answer = _git(recipe.parent, "rev-parse", "--show-toplevel")
    return recipe.parent if answer is None else Path(answer.removesuffix("\n"))


def _git_files(root: Path) -> list[str]:
    """Tracked files and those that git neither tracks nor ignores."""
    answer = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    return [name for name in answer.split("\0") if name]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return os.fsdecode(result.stdout) if result.returncode == 0 else None


def _plain_files(folder: Path) -> Iterator[str]:
    """Texts near the recipe: its folder and three levels below."""
    for current, folders, names in os.walk(folder):
        depth = len(Path(current).relative_to(folder).parts)
        folders[:] = [name for name in folders if depth < 3 and name not in _NEVER_FOLDERS and not name.startswith(".")]
        for name in names:
            if Path(name).suffix in _TEXT_SUFFIXES:
                yield str((Path(current) / name).relative_to(folder))
