"""Groups: runs that were started together, and differ in the values of some settings."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import DamagedRun, UsageError
from launcher.overrides import flatten
from launcher.recipe import Recipe
from launcher.runs import Run, check_run_name, in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """keys: the settings in which its members differ."""

    name: str
    keys: Sequence[str]

    def record_of(self, recipe: Recipe) -> dict[str, Any]:
        """What a member's `run.json` says of it."""
        values = flatten(recipe)
        return {"name": self.name, "changes": {key: values.get(key) for key in self.keys}}


def group_of(run: Run) -> Group | None:
    """The group that a run is a member of. Raises UsageError for what is no run, and DamagedRun."""
    record = run.record().get("group")
    if record is None:
        return None
    if not isinstance(record.get("name"), str) or not isinstance(record.get("changes"), dict):
        raise DamagedRun(run.folder / "run.json", "has a group without a name or changes")
    return Group(name=record["name"], keys=tuple(record["changes"]))


def changes_of(run: Run) -> dict[str, Any]:
    """The values of the settings in which a member differs from the others; empty for a run without a group."""
    return {} if group_of(run) is None else dict(run.record()["group"]["changes"])


def describe_changes(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def members_of(name_or_path: str, runs_dir: Path) -> list[Run]:
    """The members of the group of this name under `runs_dir`, or at this path; none where there is no such group."""
    if "\0" in name_or_path:
        return []
    for folder in (runs_dir / name_or_path, Path(name_or_path)):
        if not folder.name or os.path.exists(folder / "run.json"):
            continue
        found = in_order(folder.parent.resolve().glob(f"{glob.escape(folder.name)}-[0-9]*/run.json"))
        members = [run for run in found if (group := group_of(run)) is not None and group.name == folder.name]
        if members:
            return members
    return []


def runs_of(group: Group, count: int, runs_dir: Path) -> list[Run]:
    """The folders of its members, which may exist. Raises UsageError where a name is in use for something else."""
    if (runs_dir / group.name / "run.json").exists():
        raise UsageError(f"--name {group.name} is a run, which is no group; choose another --name")
    runs = [Run(runs_dir / check_run_name(f"{group.name}-{index}")) for index in range(count)]
    for run in runs:
        if (run.folder / "run.json").exists() and ((other := group_of(run)) is None or other.name != group.name):
            raise UsageError(f"{run.folder} is no run of the group {group.name}; choose another --name")
    return runs


def run_outside_groups(name: str, runs_dir: Path) -> Run:
    """The folder of a run, which may exist. Raises UsageError for the name of a group."""
    if members_of(name, runs_dir):
        raise UsageError(
            f"--name {name} is a group of runs; choose another --name, or give its --sweep and --seeds again"
        )
    return Run(runs_dir / name)
