"""What a run needs, how long it takes and what it costs, before it runs: by formula, and by a trace of its model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.backend import Backend
from cluster.preemption import SPOT_NOTICE_SECONDS
from cluster.topology import Topology
from launcher import loading
from launcher.commands.refusals import notices_of
from launcher.errors import UsageError
from launcher.preflight.gpus import Gpu
from launcher.preflight.grace import Notice
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.preflight.report import Known, Report, make_report
from launcher.preflight.verdict import Case

_NOTICES_OF_CLOUDS = tuple(Notice(place=place, seconds=seconds) for place, seconds in SPOT_NOTICE_SECONDS.items())
_DEVIATION = 0.05
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """report: None where there is no closed formula, for the reason `missing`. traced: None where that is not wanted;
    otherwise `bytes` of a rank without margin and what they are made of, or the `error` that says why not, and the
    `seconds` that it took."""

    report: Report | None
    missing: str
    traced: dict[str, Any] | None

    def lines(self) -> Iterator[str]:
        yield from [f"no formula {self.missing.partition(';')[0]}"] if self.report is None else self.report.lines()
        if self.traced is not None and "error" in self.traced:
            yield f"traced     {self.traced['error']}"
        elif self.traced is not None:
            yield from self._traced_lines(self.traced)

    def as_json(self) -> dict[str, Any]:
        found = {"memory": {}} if self.report is None else self.report.as_json()
        found["memory"]["traced"] = self.traced
        return found

    def _traced_lines(self, traced: dict[str, Any]) -> Iterator[str]:
        bounds = f"(without margin; {traced['seconds']:.0f} s)"
        closed = None if self.report is None else self.report.footprint.parts.total
        if closed is not None and abs(traced["bytes"] / closed - 1) <= _DEVIATION:
            yield f"traced     as computed, within 5 % {bounds}"
        else:
            computed = "" if closed is None else f"; computed: {closed / _GIB:.1f} GiB"
            yield f"traced     {traced['bytes'] / _GIB:.2f} GiB of a rank{computed} {bounds}"
        if traced["formula"]:
            passes, formula = (f"{traced[part] / _GIB:.2f} GiB" for part in ("passes", "formula"))
            yield f"           {passes} from the passes, {formula} by formula: {traced['added']}"
        if traced["host"]:
            yield f"           {traced['host'] / _GIB:.2f} GiB on the host, by formula"


def estimate(
    resolved: loading.Resolved,
    topology: Topology,
    gpu: Gpu | None,
    backend: Backend,
    arguments: argparse.Namespace,
    *,
    is_traced: bool,
) -> Estimate:
    """Raises UsageError for prices that cannot be read."""
    known = known_of(arguments, backend)
    traced = traced_memory(resolved, topology) if is_traced else None
    try:
        report = make_report(Case(recipe=resolved.recipe, topology=topology), gpu, known)
    except UsageError as error:
        return Estimate(report=None, missing=str(error), traced=traced)
    return Estimate(report=report, missing="", traced=traced)


def known_of(arguments: argparse.Namespace, backend: Backend) -> Known:
    return Known(
        mfu=arguments.mfu,
        node_hours=arguments.mtbf_hours,
        store_speed=None if arguments.store_speed is None else arguments.store_speed * 1e9,
        prices=read_prices(SHIPPED if arguments.prices is None else Path(arguments.prices)),
        notices=notices_of(backend, arguments) or _NOTICES_OF_CLOUDS,
    )


def traced_memory(resolved: loading.Resolved, topology: Topology) -> dict[str, Any]:
    """As in Estimate.traced; from a process of its own, which imports torch."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(loading.to_yaml(resolved), encoding="utf-8")
        words = [str(path), str(topology.nodes), str(topology.ranks_per_node)]
        result = subprocess.run(
            [sys.executable, "-m", "launcher.train.trace", *words],
            env={**os.environ, "DS_ACCELERATOR": "cpu"},  # DeepSpeed would look for a GPU, and compute as on one
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        last = (result.stderr.strip() or "no message").splitlines()[-1]
        return {"error": f"the model could not be traced: {last}"}
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found
