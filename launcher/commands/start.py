"""`launch RECIPE` and `launch resume RUN`, as far as they can be refused: what trains is imported after that."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from cluster.backend import backend_named
from cluster.topology import Topology, local_core_count
from launcher import loading
from launcher.errors import UsageError
from launcher.places import local_topology, runs_dir
from launcher.plan import make_plan
from launcher.runs import Run, check_run_name, find_run


def train(arguments: argparse.Namespace) -> int:
    topology = _topology(arguments)
    folder = runs_dir(arguments.runs_dir)
    if arguments.name is not None:
        check_run_name(arguments.name)
    use_laptop = not topology.has_gpus if arguments.laptop is None else arguments.laptop
    resolved = loading.load(arguments.recipe, arguments.overrides, laptop=use_laptop)
    plan = make_plan(resolved.recipe, topology, cores_per_node=local_core_count())
    run = Run(folder / (arguments.name or _new_name(resolved, folder)))
    from launcher.code_snapshot import root_of
    from launcher.commands.train import carry_on, start

    if (run.folder / "run.json").exists():
        frozen = loading.relocated(resolved, root_of(Path(resolved.source)), run.code)
        return carry_on(run, frozen, plan, arguments)
    return start(run, resolved, plan, arguments)


def resume(arguments: argparse.Namespace) -> int:
    run = find_run(arguments.run, runs_dir(arguments.runs_dir))
    run.record()
    # A run that was told to stop early goes on to its end, unless it is told to stop again.
    stops_again = any(word.startswith("stop_after=") for word in arguments.overrides)
    resolved = loading.load_frozen(run.config, [*([] if stops_again else ["stop_after=null"]), *arguments.overrides])
    plan = make_plan(resolved.recipe, _topology(arguments), cores_per_node=local_core_count())
    from launcher.commands.train import carry_on

    return carry_on(run, resolved, plan, arguments)


def _topology(arguments: argparse.Namespace) -> Topology:
    """The machines asked for. Raises UsageError when the target has fewer, and ClusterError for an unknown target."""
    most = backend_named(arguments.on).most_nodes
    if most is not None and arguments.nodes > most:
        raise UsageError(
            f"--nodes {arguments.nodes} is more than --on {arguments.on} has ({most}); use --gpus for more ranks"
        )
    return local_topology(arguments.nodes, arguments.gpus)


def _new_name(resolved: loading.Resolved, folder: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(resolved.source).stem).lstrip("._-")[:64] or "run"
    while True:
        name = f"{stem}-{os.urandom(2).hex()}"
        if not (folder / name).exists():
            return name
