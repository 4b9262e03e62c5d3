"""`launch show` and `launch ls`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any

from checkpoints.errors import CheckpointError
from cluster.errors import ClusterError
from cluster.topology import local_gpu_count
from launcher import loading
from launcher.errors import LaunchError
from launcher.overrides import flatten
from launcher.terminal import answer, answer_lines, complain

TYPE_CHECKING = False  # as in the package's own module
if TYPE_CHECKING:
    from launcher.runs import Run


def show(arguments: argparse.Namespace) -> int:
    use_laptop = local_gpu_count() == 0 if arguments.laptop is None else arguments.laptop
    resolved = loading.load(arguments.recipe, arguments.overrides, laptop=use_laptop)
    if arguments.json:
        print(json.dumps({"recipe": flatten(resolved.recipe), "origins": resolved.origins}, indent=1))
    else:
        answer_lines(loading.to_yaml(resolved))
    return 0


def ls(arguments: argparse.Namespace) -> int:
    from launcher.places import runs_dir
    from launcher.runs import all_runs

    folder = runs_dir(arguments.runs_dir)
    recipes = loading.shipped_recipes()
    states = list(_states(all_runs(folder)))
    if arguments.json:
        print(json.dumps({"recipes": [name for name, *_ in recipes], "runs": states}, indent=1))
        return 0
    for name, description, _ in recipes:
        answer(f"{name:14} {description}")
    for state in states:
        answer(f"{state['run']:24} {state['state']:10} step {state['step']}/{state['steps']}")
    return 0


def _states(runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """The states of the runs; one that cannot be read is named on stderr, and hides no other."""
    from launcher.status import run_summary

    for run in runs:
        try:
            yield run_summary(run)
        except (LaunchError, ClusterError, CheckpointError, OSError) as error:
            complain(f"{run.name}: {error}")
