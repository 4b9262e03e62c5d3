"""`launch RECIPE` and `launch resume RUN`, as far as they can be refused: what trains is imported after that."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from cluster.backend import Backend
from cluster.topology import Topology
from launcher import loading
from launcher.errors import UsageError
from launcher.places import runs_dir
from launcher.plan import make_plan
from launcher.runs import Attempt, Run, check_run_name, find_run
from launcher.targets import Target, choose_target
from launcher.terminal import say


def train(arguments: argparse.Namespace) -> int:
    target = _target(arguments, before=None)
    if arguments.plan:
        from launcher.commands.plan import plan as show_plan

        return show_plan(arguments, target.words)
    _refuse_flags_of_plans(arguments)
    topology = target.backend.topology(arguments.nodes or 1, arguments.gpus)
    folder = runs_dir(arguments.runs_dir)
    if arguments.name is not None:
        check_run_name(arguments.name)
    use_laptop = not topology.has_gpus if arguments.laptop is None else arguments.laptop
    resolved = loading.load(arguments.recipe, target.words, laptop=use_laptop)
    plan = make_plan(resolved.recipe, topology, cores_per_node=target.backend.cores_per_node(topology))
    _refuse_misfit(resolved, topology, target.backend, arguments)
    run = Run(folder / (arguments.name or _new_name(resolved, folder)))
    from launcher.code_snapshot import root_of
    from launcher.commands.train import carry_on, start

    if (run.folder / "run.json").exists():
        frozen = loading.relocated(resolved, root_of(Path(resolved.source)), run.code)
        return carry_on(run, frozen, plan, target.backend, arguments)
    return start(run, resolved, plan, target.backend, arguments)


def resume(arguments: argparse.Namespace) -> int:
    run = find_run(arguments.run, runs_dir(arguments.runs_dir))
    run.record()
    attempts = run.attempts()
    before = attempts[-1] if attempts else None
    target = _target(arguments, before)
    # A run that was told to stop early goes on to its end, unless it is told to stop again.
    stops_again = any(word.startswith("stop_after=") for word in target.words)
    resolved = loading.load_frozen(run.config, [*([] if stops_again else ["stop_after=null"]), *target.words])
    nodes, ranks_per_node = _size(arguments, before, target)
    topology = target.backend.topology(nodes, ranks_per_node)
    plan = make_plan(resolved.recipe, topology, cores_per_node=target.backend.cores_per_node(topology))
    _refuse_misfit(resolved, topology, target.backend, arguments)
    from launcher.commands.train import carry_on

    return carry_on(run, resolved, plan, target.backend, arguments)


def _refuse_misfit(
    resolved: loading.Resolved, topology: Topology, backend: Backend, arguments: argparse.Namespace
) -> None:
    """This machine's GPU says nothing of those that a scheduler will give."""
    is_stated = arguments.gpu is not None or arguments.gpu_memory is not None
    if is_stated or (topology.has_gpus and backend.needs_launcher):
        from launcher.commands.plan import refuse_misfit

        refuse_misfit(resolved.recipe, topology, arguments)


def _refuse_flags_of_plans(arguments: argparse.Namespace) -> None:
    for flag, value in (("--trace", arguments.trace), ("--json", arguments.json), ("--mfu", arguments.mfu)):
        if value:
            raise UsageError(f"{flag} says something of a plan; give --plan with it, or do without")


def _target(arguments: argparse.Namespace, before: Attempt | None) -> Target:
    record = before.record() if before is not None else {}
    target = choose_target(arguments.on, arguments.nodes or 1, arguments.overrides, record)
    if target.profile is not None:
        say(f"profile    {target.profile.resolve()}")
    return target


def _size(arguments: argparse.Namespace, before: Attempt | None, target: Target) -> tuple[int, int | None]:
    """(nodes, ranks per node): of a batch job that goes on as one, what it had before, if nothing else is said."""
    record = before.record() if before is not None else {}
    if target.backend.needs_launcher or record.get("target") != target.backend.name:
        return arguments.nodes or 1, arguments.gpus
    return arguments.nodes or record["nodes"], arguments.gpus or record["ranks_per_node"]


def _new_name(resolved: loading.Resolved, folder: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(resolved.source).stem).lstrip("._-")[:64] or "run"
    while True:
        name = f"{stem}-{os.urandom(2).hex()}"
        if not (folder / name).exists():
            return name
