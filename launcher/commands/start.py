"""`launch RECIPE` and `launch resume RUN`, as far as they can be refused: what trains is imported after that."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cluster.backend import Backend
from cluster.errors import ClusterError
from cluster.topology import Topology
from launcher import loading
from launcher.commands.refusals import refuse_what_cannot_work
from launcher.errors import UsageError
from launcher.groups import Group, run_outside_groups, runs_of
from launcher.places import runs_dir, store_url
from launcher.plan import Plan, make_plan
from launcher.runs import Attempt, Run, check_run_name, find_run
from launcher.sweep import check_sweeps, combinations, parse_sweeps
from launcher.targets import Target, choose_target
from launcher.terminal import say

SPOT_FLAGS = ("seed", "mean_seconds", "trace")

TYPE_CHECKING = False  # as in the package's own module
if TYPE_CHECKING:
    from launcher.commands.bundle import Bundle
    from launcher.commands.train import Work


def train(arguments: argparse.Namespace) -> int:
    target = _target(arguments, before=None, is_planned=arguments.plan or arguments.dry_run)
    if arguments.plan:
        from launcher.commands.plan import plan as show_plan

        return show_plan(arguments, target)
    _refuse_flags_of_plans(arguments)
    sweeps = parse_sweeps(arguments.sweep)
    check_sweeps(sweeps, arguments.seeds, target.words)
    topology = target.backend.topology(arguments.nodes or 1, arguments.gpus)
    folder = runs_dir(arguments.runs_dir)
    if arguments.name is not None:
        check_run_name(arguments.name)
    use_laptop = not topology.has_gpus if arguments.laptop is None else arguments.laptop
    load = partial(loading.load, arguments.recipe, laptop=use_laptop)
    members = list(_members(load, target.words, sweeps, arguments.seeds))
    plans = [_plan(resolved, topology, target.backend, arguments) for _, resolved in members]
    name = arguments.name or _new_name(members[0][1], folder)
    is_group = bool(sweeps) or arguments.seeds is not None
    group = Group(name=name, keys=tuple(members[0][0])) if is_group else None
    runs = runs_of(group, len(members), folder) if group is not None else [run_outside_groups(name, folder)]
    from launcher.commands.train import train_all

    works = [
        _work(run, resolved, plan, group, arguments.checkpoints)
        for run, (_, resolved), plan in zip(runs, members, plans, strict=True)
    ]
    return train_all(works, target.backend, arguments)


def _members(
    load: Callable[[Sequence[str]], loading.Resolved],
    words: Sequence[str],
    sweeps: Mapping[str, Sequence[str]],
    seeds: int | None,
) -> Iterator[tuple[dict[str, str], loading.Resolved]]:
    """What is special to each member, and its recipe; one member for whom nothing is, without sweeps and seeds."""
    for changes in combinations(sweeps):
        resolved = load([*words, *_words(changes)])
        if seeds is None:
            yield changes, resolved
            continue
        others = [word for word in words if not word.startswith("seed=")]
        for seed in range(resolved.recipe.seed, resolved.recipe.seed + seeds):
            member = {**changes, "seed": str(seed)}
            yield member, load([*others, *_words(member)])


def _words(changes: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def planned_bundle(
    arguments: argparse.Namespace, backend: Backend, resolved: loading.Resolved, planned: Topology
) -> Bundle:
    """What a launch would make and execute where the target has what was planned. Raises ClusterError, UsageError."""
    from launcher.commands.bundle import Bundle
    from launcher.commands.train import start_of

    topology = planned
    if backend.needs_launcher:
        backend.topology(planned.nodes, None)  # raises for more machines than it has; those may have other GPUs here
    else:
        with suppress(ClusterError):
            topology = backend.topology(planned.nodes, planned.ranks_per_node)
    folder = runs_dir(arguments.runs_dir)
    run = run_outside_groups(arguments.name or _new_name(resolved, folder), folder)
    plan = make_plan(resolved.recipe, topology, cores_per_node=backend.cores_per_node(topology))
    work = _work(run, resolved, plan, None, arguments.checkpoints)
    start = start_of(work, 1, arguments)
    return Bundle.of([work], [start], [backend.render([start.job(len(run.attempts()) + 1)])], backend)


def _work(run: Run, resolved: loading.Resolved, plan: Plan, group: Group | None, place: str | None) -> Work:
    """`place` is what `--checkpoints` says."""
    from launcher.code_snapshot import root_of
    from launcher.commands.train import Work

    checkpoints = None if place is None else store_url(place, run.name)
    if (run.folder / "run.json").exists():
        _refuse_another_place(run, checkpoints)
        resolved = loading.relocated(resolved, root_of(Path(resolved.source)), run.code)
    return Work(run=run, resolved=resolved, plan=plan, group=group, checkpoints=checkpoints)


def resume(arguments: argparse.Namespace) -> int:
    run = find_run(arguments.run, runs_dir(arguments.runs_dir))
    run.record()
    attempts = run.attempts()
    before = attempts[-1] if attempts else None
    if arguments.json and not arguments.dry_run:
        raise UsageError("--json says something of a dry run; give --dry-run with it, or do without")
    target = _target(arguments, before, is_planned=arguments.dry_run)
    # A run that was told to stop early goes on to its end, unless it is told to stop again.
    stops_again = any(word.startswith("stop_after=") for word in target.words)
    resolved = loading.load_frozen(run.config, [*([] if stops_again else ["stop_after=null"]), *target.words])
    nodes, ranks_per_node = _size(arguments, before, target)
    topology = target.backend.topology(nodes, ranks_per_node)
    plan = _plan(resolved, topology, target.backend, arguments)
    from launcher.commands.train import Work, train_all

    return train_all([Work(run=run, resolved=resolved, plan=plan)], target.backend, arguments)


def _refuse_another_place(run: Run, checkpoints: str | None) -> None:
    if checkpoints is not None and run.checkpoints != checkpoints:
        remedy = "leave the flag out to resume it, or choose another --name"
        raise UsageError(f"--checkpoints: those of {run.name} are in {run.checkpoints}, not {checkpoints}; {remedy}")


def _plan(resolved: loading.Resolved, topology: Topology, backend: Backend, arguments: argparse.Namespace) -> Plan:
    """Raises UsageError for a plan that cannot be, and DoesNotFit where the GPU is known: named, or of this machine."""
    plan = make_plan(resolved.recipe, topology, cores_per_node=backend.cores_per_node(topology))
    refuse_what_cannot_work(resolved.recipe, topology, backend, arguments)
    return plan


def _refuse_flags_of_plans(arguments: argparse.Namespace) -> None:
    if arguments.no_steps and not arguments.dry_run:
        raise UsageError("--no-steps says something of a dry run; give --dry-run with it, or do without")
    if arguments.trace:
        raise UsageError("--trace says something of a plan; give --plan with it, or --dry-run alone, which traces, too")
    for name in ("json", "mfu", "store_speed", "prices", "bundle"):
        if getattr(arguments, name) and not arguments.dry_run:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} says something of a plan; give --plan or --dry-run with it, or do without")


def _target(arguments: argparse.Namespace, before: Attempt | None, *, is_planned: bool) -> Target:
    record = before.record() if before is not None else {}
    spot = {name: value for name in SPOT_FLAGS if (value := getattr(arguments, f"spot_{name}")) is not None}
    target = choose_target(arguments.on, arguments.nodes or 1, arguments.overrides, record, spot, is_planned=is_planned)
    if target.profile is not None:
        say(f"profile    {target.profile.resolve()}")
    return target


def _size(arguments: argparse.Namespace, before: Attempt | None, target: Target) -> tuple[int, int | None]:
    """(nodes, ranks per node): of a run that goes on where it was, what it had there, if nothing else is said."""
    record = before.record() if before is not None else {}
    if not target.backend.resumes_there or record.get("target") != target.backend.name:
        return arguments.nodes or 1, arguments.gpus
    return arguments.nodes or record.get("asked_nodes", record["nodes"]), arguments.gpus or record["ranks_per_node"]


def _new_name(resolved: loading.Resolved, folder: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(resolved.source).stem).lstrip("._-")[:64] or "run"
    while True:
        name = f"{stem}-{os.urandom(2).hex()}"
        if not (folder / name).exists():
            return name
