"""`launch RECIPE --plan`, and the refusal of a plan that does not fit."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import starmap
from pathlib import Path
from typing import Any

from cluster.backend import Backend
from cluster.preemption import SPOT_NOTICE_SECONDS
from cluster.topology import Topology, local_gpu_count
from launcher import loading
from launcher.errors import LaunchError, UsageError
from launcher.preflight.gpus import Gpu, gpu_named, gpu_with_memory, local_gpu
from launcher.preflight.grace import Notice
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.preflight.report import Known, Report, make_report
from launcher.preflight.shape import NoShape
from launcher.preflight.spread import SPREADS
from launcher.preflight.verdict import Case
from launcher.recipe import Recipe
from launcher.targets import Target
from launcher.terminal import answer, complain, say

_DEVIATION = 0.05
_GIB = 2**30


def plan(arguments: argparse.Namespace, target: Target) -> int:
    """Show what is known of a run on the GPUs asked for, whatever this machine has; 3 if it does not fit."""
    topology = Topology(
        nodes=arguments.nodes or 1, ranks_per_node=arguments.gpus or local_gpu_count() or 1, has_gpus=True
    )
    resolved = loading.load(arguments.recipe, target.words, laptop=bool(arguments.laptop))
    case = Case(recipe=resolved.recipe, topology=topology)
    traced = _trace(resolved, topology) if arguments.trace else None
    try:
        report = make_report(case, known_gpu(arguments), _known(arguments, target.backend))
    except NoShape as error:
        if traced is None:
            raise
        complain(str(error))
        return _show_traced_alone(traced, is_json=arguments.json)
    _show(report, traced, is_json=arguments.json)
    return 3 if report.fits is False and not arguments.force else 0


def _known(arguments: argparse.Namespace, backend: Backend) -> Known:
    return Known(
        mfu=arguments.mfu,
        node_hours=arguments.mtbf_hours,
        store_speed=None if arguments.store_speed is None else arguments.store_speed * 1e9,
        prices=read_prices(SHIPPED if arguments.prices is None else Path(arguments.prices)),
        notices=_notices(arguments, backend) or tuple(starmap(_notice, SPOT_NOTICE_SECONDS.items())),
    )


def _notices(arguments: argparse.Namespace, backend: Backend) -> tuple[Notice, ...]:
    """What is known of the place; nothing where it never ends a run."""
    if arguments.grace_seconds is not None:
        return (_notice("--grace-seconds", arguments.grace_seconds),)
    if (known := backend.notice()) is None:
        return ()
    setting, seconds = known
    return (Notice(place=backend.name, seconds=seconds, setting=setting),)


def _notice(place: str, seconds: float) -> Notice:
    return Notice(place=place, seconds=seconds)


def refuse_misfit(recipe: Recipe, topology: Topology, backend: Backend, arguments: argparse.Namespace) -> None:
    """Raises DoesNotFit where the GPU is known, and the model has a closed formula, unless that is forced.

    Says how a stop could come too late for a save.
    """
    gpu = known_gpu(arguments)
    if gpu is not None and not topology.has_gpus:
        raise UsageError(f"--gpu {gpu.name}: this run has no GPU; give --plan to see what it would need on one")
    if gpu is None or arguments.force or recipe.parallel.strategy not in SPREADS:
        return
    try:
        known = Known(node_hours=arguments.mtbf_hours, notices=_notices(arguments, backend))
        report = make_report(Case(recipe=recipe, topology=topology), gpu, known)
    except NoShape:
        return
    report.refuse_misfit()
    for warning in report.warnings():
        say(warning)


def known_gpu(arguments: argparse.Namespace) -> Gpu | None:
    """The GPU that the command names, or that this machine has; None where neither is known."""
    if arguments.gpu is not None and arguments.gpu_memory is not None:
        raise UsageError(f"--gpu {arguments.gpu} and --gpu-memory {arguments.gpu_memory:g} say the same; give one")
    if arguments.gpu is not None:
        return gpu_named(arguments.gpu)
    return local_gpu() if arguments.gpu_memory is None else gpu_with_memory(arguments.gpu_memory)


def _show(report: Report, traced: dict[str, Any] | None, *, is_json: bool) -> None:
    if is_json:
        found = report.as_json()
        found["memory"]["traced"] = traced
        print(json.dumps(found, indent=1))
        return
    for line in report.lines():
        answer(line)
    if traced is None:
        return
    if "error" in traced:
        answer(f"traced     {traced['error']}")
        return
    closed = report.footprint.parts.total
    agrees = abs(traced["bytes"] / closed - 1) <= _DEVIATION
    both = (
        "as computed, within 5 %" if agrees else f"{traced['bytes'] / _GIB:.1f} GiB; computed: {closed / _GIB:.1f} GiB"
    )
    answer(f"traced     {both} (without margin; {traced['seconds']:.0f} s)")


def _show_traced_alone(traced: dict[str, Any], *, is_json: bool) -> int:
    if "error" in traced:
        raise UsageError(traced["error"])
    if is_json:
        print(json.dumps({"memory": {"traced": traced}}, indent=1))
    else:
        answer(f"traced     {traced['bytes'] / _GIB:.2f} GiB of a rank, without margin ({traced['seconds']:.0f} s)")
    return 0


def _trace(resolved: loading.Resolved, topology: Topology) -> dict[str, Any]:
    """In a process of its own, which imports torch."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(loading.to_yaml(resolved), encoding="utf-8")
        words = [str(path), str(topology.nodes), str(topology.ranks_per_node)]
        result = subprocess.run(
            [sys.executable, "-m", "launcher.train.trace", *words], capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        raise LaunchError(f"the trace failed: {last}; do without --trace")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found
