"""`launch show` and `launch ls`."""

from __future__ import annotations

import argparse
import json

from cluster.topology import local_gpu_count
from launcher import loading
from launcher.overrides import flatten


def show(arguments: argparse.Namespace) -> int:
    use_laptop = local_gpu_count() == 0 if arguments.laptop is None else arguments.laptop
    resolved = loading.load(arguments.recipe, arguments.overrides, laptop=use_laptop)
    if arguments.json:
        print(json.dumps({"recipe": flatten(resolved.recipe), "origins": resolved.origins}, indent=1))
    else:
        print(loading.to_yaml(resolved), end="")
    return 0


def ls(arguments: argparse.Namespace) -> int:
    from launcher.places import runs_dir
    from launcher.runs import all_runs
    from launcher.status import run_state, run_summary

    folder = runs_dir(arguments.runs_dir)
    runs = all_runs(folder)
    recipes = loading.shipped_recipes()
    if arguments.json:
        print(
            json.dumps({"recipes": [name for name, *_ in recipes], "runs": [run_state(run) for run in runs]}, indent=1)
        )
        return 0
    for name, description, _ in recipes:
        print(f"{name:14} {description}")
    for run in runs:
        state = run_summary(run)
        print(f"{run.name:24} {state['state']:10} step {state['step']}/{state['steps']}")
    return 0
