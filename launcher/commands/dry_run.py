"""`launch RECIPE --dry-run`: what would be executed, what is known of it, and a few real steps on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cluster.backend import Backend
from cluster.job import Submission
from launcher.commands.bundle import Bundle, masked
from launcher.commands.estimate import Estimate, estimate
from launcher.commands.refusals import gpu_of_run
from launcher.commands.steps import take_steps
from launcher.commands.train import Work, say_all
from launcher.supervise import Start
from launcher.terminal import answer_lines, say


def dry_run(
    works: Sequence[Work],
    starts: Sequence[Start],
    submissions: Sequence[Submission],
    backend: Backend,
    arguments: argparse.Namespace,
) -> int:
    """On stdout exactly what would be executed, or with --json all of it; the rest for people, beside it.

    Of several runs the first is estimated and tried, and of one that exists neither. Raises RunFailed where the real
    steps fail.
    """
    say_all(works, backend)
    bundle = Bundle.of(works, starts, submissions, backend)
    for line in bundle.lines():
        say(line)
    if arguments.bundle is not None:
        bundle.write(Path(arguments.bundle))
        say(f"{'bundle':10} {arguments.bundle}")
    say("dry run: nothing is made, nothing is submitted; this would be")
    if not arguments.json:
        for submission in submissions:
            answer_lines(masked(str(submission)))
    for text in (text for submission in submissions for text in submission.unchecked):
        say(f"not checked here: {text}")
    found = None if works[0].exists else _estimate(works[0], backend, arguments)
    topology = works[0].plan.topology
    steps = [] if works[0].exists or arguments.no_steps else take_steps(arguments, backend, topology)
    if arguments.json:
        known = {} if found is None else found.as_json()
        print(json.dumps(known | {"submission": bundle.as_json(backend.name), "steps": steps}, indent=1))
    return 0


def _estimate(work: Work, backend: Backend, arguments: argparse.Namespace) -> Estimate | None:
    topology = work.plan.topology
    if not topology.has_gpus:
        say("not known: memory and time of ranks on CPUs; --plan computes them for GPUs")
        return None
    is_traced = not arguments.no_steps
    if is_traced:
        say("dry run: what each rank would hold, by formula and by a trace of the model")
    gpu = gpu_of_run(topology, backend, arguments)
    found = estimate(work.resolved, topology, gpu, backend, arguments, is_traced=is_traced)
    for line in found.lines():
        say(line)
    return found
