"""`launch rehearse`."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cluster.topology import Topology, local_core_count
from launcher import loading
from launcher.plan import make_plan
from launcher.rehearsal.course import RANKS, Course
from launcher.rehearsal.course import rehearse as run_course
from launcher.rehearsal.interruptions import Interruption, interruptions
from launcher.rehearsal.verdict import Check, first_difference
from launcher.targets import choose_target
from launcher.terminal import answer, say

_SPOT = "spot"


def rehearse(arguments: argparse.Namespace) -> int:
    """Interrupt a small run of the recipe here as its target would; 1 when it does not end like one left alone."""
    words, ways = _target(arguments)
    resolved = loading.load(arguments.recipe, words, laptop=True)
    here = Topology(nodes=1, ranks_per_node=RANKS, has_gpus=False)
    make_plan(resolved.recipe, here, cores_per_node=local_core_count())
    folder = Path(tempfile.mkdtemp(prefix="launch-rehearsal-"))
    course = Course(
        recipe=resolved.recipe, source=arguments.recipe, words=words, folder=folder, interruptions=ways,
        seed=arguments.seed,
    )  # fmt: skip
    started, keeps = time.monotonic(), True
    try:
        checks = run_course(course)
        keeps = arguments.keep or first_difference(checks) is not None
    except KeyboardInterrupt:
        keeps = arguments.keep
        raise
    finally:
        if keeps:
            say(f"the runs are kept in {folder}")
        else:
            shutil.rmtree(folder)
    _show(checks, time.monotonic() - started, arguments, folder if keeps else None)
    return 0 if first_difference(checks) is None else 1


def _target(arguments: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Interruption, ...]]:
    """The words that are left for the recipe, and what ends jobs there."""
    if arguments.on == _SPOT:
        return tuple(arguments.overrides), interruptions((), is_spot=True)
    target = choose_target(arguments.on, arguments.nodes or 1, arguments.overrides, {})
    if target.profile is not None:
        say(f"profile    {target.profile.resolve()}")
    return target.words, interruptions(target.backend.stop_signals, is_spot=False)


def _show(checks: Sequence[Check], seconds: float, arguments: argparse.Namespace, folder: Path | None) -> None:
    first = first_difference(checks)
    if arguments.json:
        found = {
            "is_equal": first is None,
            "first_differing_step": None if first is None else first.step,
            "checks": [{"is_equal": check.is_equal, **asdict(check)} for check in checks],
            "seed": arguments.seed,
            "seconds": round(seconds, 1),
            "folder": folder and str(folder),
        }
        print(json.dumps(found, indent=1))
        return
    rows = [["", "came after", "gone in s", "went on after", "back in s", "verdict"], *map(_row, checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    made = f"seed {arguments.seed}, {seconds:.0f} s"
    if first is None:
        answer(f"nothing was lost ({made})")
    else:
        step = "the run" if first.step is None else f"step {first.step} is the first that"
        answer(f"{step} differs ({first.what}): {first.difference} ({made})")


def _row(check: Check) -> list[str]:
    verdict = check.remark or check.difference
    if check.step is not None:
        verdict = f"step {check.step}: {verdict}"
    if (came := check.delivery) is None:
        return [check.what, "", "", "", "", verdict]
    resumed = "-" if came.resumed_after is None else f"step {came.resumed_after}"
    return [check.what, f"step {came.step}", _tenths(came.left_seconds), resumed, _tenths(came.back_seconds), verdict]


def _tenths(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"
