"""`launch RECIPE --plan`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cluster.backend import Backend
from cluster.errors import ClusterError
from cluster.preemption import SPOT_NOTICE_SECONDS
from cluster.topology import Topology, local_gpu_count
from launcher import loading
from launcher.commands.refusals import known_gpu, notices_of, warnings_of_disk
from launcher.errors import LaunchError, UsageError
from launcher.preflight.compatibility import cautions, refuse_incompatible
from launcher.preflight.grace import Notice
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.preflight.report import Known, Report, make_report
from launcher.preflight.shape import NoShape
from launcher.preflight.verdict import Case
from launcher.targets import Target
from launcher.terminal import answer, complain, say

_NOTICES_OF_CLOUDS = tuple(Notice(place=place, seconds=seconds) for place, seconds in SPOT_NOTICE_SECONDS.items())
_DEVIATION = 0.05
_GIB = 2**30


def plan(arguments: argparse.Namespace, target: Target) -> int:
    """Show what is known of a run on the GPUs asked for, whatever this machine has; 3 if it does not fit."""
    topology = Topology(
        nodes=arguments.nodes or 1, ranks_per_node=arguments.gpus or local_gpu_count() or 1, has_gpus=True
    )
    resolved = loading.load(arguments.recipe, target.words, laptop=bool(arguments.laptop))
    case, gpu = Case(recipe=resolved.recipe, topology=topology), known_gpu(arguments)
    refuse_incompatible(resolved.recipe, gpu)
    for line in (*cautions(resolved.recipe, topology), *warnings_of_disk(target.backend, arguments)):
        say(line)
    traced = _trace(resolved, topology) if arguments.trace else None
    submission = _submission(arguments, target.backend, resolved, topology)
    try:
        report = make_report(case, gpu, known_of(arguments, target.backend))
    except NoShape as error:
        if traced is None:
            raise
        complain(str(error))
        return _show_traced_alone(traced, is_json=arguments.json)
    _show(report, traced, submission, arguments)
    return 3 if report.fits is False and not arguments.force else 0


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
    return {"target": backend.name, "files": dict(bundle.files), "summary": list(bundle.summary)}


def known_of(arguments: argparse.Namespace, backend: Backend) -> Known:
    return Known(
        mfu=arguments.mfu,
        node_hours=arguments.mtbf_hours,
        store_speed=None if arguments.store_speed is None else arguments.store_speed * 1e9,
        prices=read_prices(SHIPPED if arguments.prices is None else Path(arguments.prices)),
        notices=notices_of(backend, arguments) or _NOTICES_OF_CLOUDS,
    )


def _show(
    report: Report,
    traced: dict[str, Any] | None,
    submission: dict[str, object] | None,
    arguments: argparse.Namespace,
) -> None:
    if arguments.json:
        found = report.as_json() | {"submission": submission}
        found["memory"]["traced"] = traced
        print(json.dumps(found, indent=1))
        return
    for line in report.lines():
        answer(line)
    if arguments.bundle is not None:
        answer(f"bundle     {arguments.bundle}: every file and command of a launch")
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
