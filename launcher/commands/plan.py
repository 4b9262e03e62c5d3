"""`launch RECIPE --plan`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cluster.backend import Backend
from cluster.errors import ClusterError
from cluster.topology import Topology, local_gpu_count
from launcher import loading
from launcher.commands.estimate import Estimate, estimate
from launcher.commands.refusals import known_gpu, warnings_of_disk
from launcher.errors import UsageError
from launcher.preflight.compatibility import cautions, refuse_incompatible
from launcher.targets import Target
from launcher.terminal import answer, say


def plan(arguments: argparse.Namespace, target: Target) -> int:
    """Show what is known of a run on the GPUs asked for, whatever this machine has; 3 if it does not fit."""
    topology = Topology(
        nodes=arguments.nodes or 1, ranks_per_node=arguments.gpus or local_gpu_count() or 1, has_gpus=True
    )
    resolved = loading.load(arguments.recipe, target.words, laptop=bool(arguments.laptop))
    gpu = known_gpu(arguments, target.backend)
    refuse_incompatible(resolved.recipe, gpu)
    for line in (*cautions(resolved.recipe, topology), *warnings_of_disk(target.backend, arguments)):
        say(line)
    found = estimate(resolved, topology, gpu, target.backend, arguments, is_traced=arguments.trace)
    if found.report is None and (found.traced is None or "error" in found.traced):
        raise UsageError(found.missing if found.traced is None else found.traced["error"])
    _show(found, _submission(arguments, target.backend, resolved, topology), arguments)
    does_fit = found.report is None or found.report.fits is not False
    return 0 if does_fit or arguments.force else 3


def _submission(
    arguments: argparse.Namespace, backend: Backend, resolved: loading.Resolved, topology: Topology
) -> dict[str, object] | None:
    """What a launch would make and execute, by file, where it is asked for; or why there can be none."""
    if not arguments.json and arguments.bundle is None:
        return None
    from launcher.commands.start import planned_bundle

    try:
        bundle = planned_bundle(arguments, backend, resolved, topology)
    except ClusterError as error:
        if arguments.bundle is not None:
            raise
        return {"target": backend.name, "refused": str(error)}
    if arguments.bundle is not None:
        bundle.write(Path(arguments.bundle))
    return bundle.as_json(backend.name)


def _show(found: Estimate, submission: dict[str, object] | None, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(found.as_json() | {"submission": submission}, indent=1))
        return
    for line in found.lines():
        answer(line)
    if arguments.bundle is not None:
        answer(f"bundle     {arguments.bundle}: every file and command of a launch")
