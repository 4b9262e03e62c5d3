"""Make a run, or carry one on, and train it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from checkpoints.errors import OwnerAlive
from checkpoints.log import CommitLog
from checkpoints.owner import owner_is_alive
from checkpoints.store import open_store
from cluster.backend import Backend, backend_named
from cluster.job import JobState, Submission
from launcher import loading
from launcher.code_snapshot import code_of, copy, digests_of_copy
from launcher.disk import synchronize
from launcher.drift import (
    Change,
    check,
    compare_code,
    compare_environments,
    compare_places,
    compare_settings,
    refuse_unknown_fields,
)
from launcher.environment import environment
from launcher.errors import UsageError
from launcher.overrides import flatten
from launcher.places import word_for
from launcher.plan import Plan, resolve_precision
from launcher.recipe import Recipe
from launcher.runs import FORMAT, Attempt, Outcome, Run, write_json
from launcher.supervise import make_job, start_attempt, supervise
from launcher.terminal import answer, answer_lines, say
from launcher.watch import make_display

LEAVING_SECONDS = 15.0


def start(run: Run, resolved: loading.Resolved, plan: Plan, backend: Backend, arguments: argparse.Namespace) -> int:
    """Make the run, and train it. It is not made when its place would refuse it."""
    submission = backend.render(make_job(run, 1, plan.topology))
    if arguments.dry_run:
        return _show(submission, run, resolved, plan)
    backend.check(submission)
    _create_run(run, resolved)
    return _run(run, resolved, plan, backend, arguments, is_takeover=arguments.takeover)


def _show(submission: Submission, run: Run, resolved: loading.Resolved, plan: Plan) -> int:
    for title, text in _describe(run, resolved, plan):
        say(f"{title:10} {text}")
    say("dry run: nothing is made, nothing is submitted; this would be")
    answer_lines(str(submission))
    return 0


def _create_run(run: Run, resolved: loading.Resolved) -> None:
    """Freeze recipe and code. The folder gets its name last: it is a whole run, or it is not there."""
    if run.folder.exists():
        raise UsageError(f"{run.folder} exists and is not a run; choose another --name")
    staging = Run(run.folder.with_name(f".{run.name}.partial"))
    try:
        shutil.rmtree(staging.folder, ignore_errors=True)
        staging.folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"--runs-dir {run.folder.parent} cannot be written ({error.strerror}); choose another"
        ) from error
    tree = code_of(Path(resolved.source))
    copy(tree, staging.code)
    if tree.left_out:
        say(f"left out of the code snapshot: {', '.join(tree.left_out)}")
    loading.freeze(resolved, tree.root, staging.config)
    _write_record(staging, resolved, run.name)
    synchronize(staging.folder)  # checkpoints outlive a crash of the machine, so the code that can go on with them must
    os.rename(staging.folder, run.folder)
    synchronize(run.folder.parent)


def _write_record(run: Run, resolved: loading.Resolved, name: str) -> None:
    record = {"format": FORMAT, "run": name, "recipe": resolved.source, "steps": resolved.recipe.steps}
    write_json(run.folder / "run.json", record)


def carry_on(run: Run, resolved: loading.Resolved, plan: Plan, backend: Backend, arguments: argparse.Namespace) -> int:
    """Resume: refuse what would not be the same run, say what changed, and go on at the newest commit."""
    attempts = run.attempts()
    outcome = attempts[-1].outcome() if attempts else None
    if outcome is not None and outcome.state == "SUCCEEDED":
        say(f"{run.name} has ended well at step {outcome.step}; there is nothing to resume")
        answer(str(run.folder))
        return 0
    settings = flatten(loading.load_frozen(run.config).recipe) | flatten(resolved.recipe)
    refuse_unknown_fields(arguments.allow_change, list(settings))
    is_over = bool(attempts) and _has_batch_job_ended(run, attempts[-1], is_takeover=arguments.takeover)
    if not arguments.takeover and not is_over:
        _wait_for_owner(run, has_ended=outcome is not None)
    plan = _with_same_threads(run, plan)
    for line in check(_changes(run, resolved, plan), arguments.allow_change):
        say(line)
    submission = backend.render(make_job(run, len(attempts) + 1, plan.topology))
    if arguments.dry_run:
        return _show(submission, run, resolved, plan)
    backend.check(submission)
    loading.freeze(resolved, run.code, run.config)
    _write_record(run, resolved, run.name)
    return _run(run, resolved, plan, backend, arguments, is_takeover=arguments.takeover or is_over)


def _has_batch_job_ended(run: Run, attempt: Attempt, *, is_takeover: bool) -> bool:
    """Whether the newest attempt was a job of a scheduler which says that it is over: then nobody owns the run.

    Raises UsageError when the job may go on.
    """
    record = attempt.record()
    backend = backend_named(record.get("target", "local"))
    if backend.needs_launcher or "handle" not in record:
        return False
    situation = backend.situation(record["handle"])
    if situation.state is not JobState.ENDED and not is_takeover:
        job = f"{backend.name} job {record['handle']} of this run is {situation.state} ({situation.reason})"
        raise UsageError(f"{job}; use launch cancel {run.name} first, or --takeover")
    return situation.state is JobState.ENDED


def _wait_for_owner(run: Run, *, has_ended: bool) -> None:
    """Raises OwnerAlive when somebody trains this run; the processes of an attempt that has ended get time to leave."""
    deadline = time.monotonic() + (LEAVING_SECONDS if has_ended else 0)
    entry = CommitLog(open_store(run.checkpoints)).read()
    while entry is not None and not entry.is_done and owner_is_alive(entry.owner):
        if time.monotonic() > deadline:
            raise OwnerAlive(str(entry.owner))
        time.sleep(0.05)


def _with_same_threads(run: Run, plan: Plan) -> Plan:
    """Sums are rounded by how they are split among threads: as many ranks as before get as many threads as before."""
    for attempt in reversed(run.attempts()):
        record = attempt.record()
        if record.get("ranks_per_node") == plan.topology.ranks_per_node and "threads_per_rank" in record:
            return replace(plan, threads_per_rank=record["threads_per_rank"])
    return plan


def _changes(run: Run, resolved: loading.Resolved, plan: Plan) -> Iterator[Change]:
    """What is not as it was when the run was last at work: what is found quickly first.

    Data and base model are compared where they are read.
    """
    before = loading.load_frozen(run.config)
    yield from compare_settings(flatten(before.recipe), flatten(resolved.recipe))
    for attempt in reversed(run.attempts()):
        if record := attempt.environment():
            yield from compare_places(attempt.record(), _place(resolved.recipe, plan))
            yield from compare_environments(record, environment(run.code))
            break
    recipe_file = Path(run.record()["recipe"])
    if recipe_file.exists():
        yield from compare_code(digests_of_copy(run.code), code_of(recipe_file).digests())


def _place(recipe: Recipe, plan: Plan) -> dict[str, object]:
    """What an attempt's record says of the machines and of what follows from them."""
    return {
        "nodes": plan.topology.nodes,
        "ranks_per_node": plan.topology.ranks_per_node,
        "has_gpus": plan.topology.has_gpus,
        "threads_per_rank": plan.threads_per_rank,
        "micro": plan.micro,
        "precision": resolve_precision(recipe, plan.topology)[0],
    }


def _run(
    run: Run,
    resolved: loading.Resolved,
    plan: Plan,
    backend: Backend,
    arguments: argparse.Namespace,
    *,
    is_takeover: bool,
) -> int:
    recipe = resolved.recipe
    for title, text in _describe(run, resolved, plan):
        say(f"{title:10} {text}")
    settings = {
        **_place(recipe, plan), "takeover": is_takeover, "allow_change": arguments.allow_change,
        "hang_seconds": arguments.hang_seconds, "grace_seconds": arguments.grace_seconds,
    }  # fmt: skip
    if not backend.needs_launcher:
        return _submit(run, recipe, plan, backend, settings)
    display = make_display(recipe.steps)
    try:
        outcome = supervise(run, recipe, plan, backend, settings, display)
    finally:
        display.close()
    answer(str(run.folder))
    _conclude(run, recipe, outcome)
    return outcome.exit_code


def _submit(run: Run, recipe: Recipe, plan: Plan, backend: Backend, settings: dict[str, object]) -> int:
    """Leave the run to a scheduler, which starts it as often as it has to."""
    attempt = start_attempt(run, recipe, plan, backend, settings)
    where = word_for(run.folder)
    say(f"{backend.name} job {attempt.record()['handle']} is submitted. Next:")
    say(f"  launch status {where}")
    say(f"  launch logs {where} -f")
    say(f"  launch cancel {where}")
    answer(str(run.folder))
    return 0


def _describe(run: Run, resolved: loading.Resolved, plan: Plan) -> Sequence[tuple[str, str]]:
    recipe, topology = resolved.recipe, plan.topology
    precision, reason = resolve_precision(recipe, topology)
    threads = f"{plan.threads_per_rank} thread{'s' if plan.threads_per_rank > 1 else ''}"
    model = recipe.model.name or str(recipe.model.build)
    adapter = f"LoRA rank {recipe.adapter.rank}" if recipe.adapter else ""
    method = [word for word in (recipe.quantize.replace("none", ""), adapter) if word]
    note = (
        " with its laptop overrides, because this machine has no GPU" if "laptop" in resolved.origins.values() else ""
    )
    spread = [("parallel", recipe.parallel.describe())] if recipe.parallel.strategy != "ddp" else []
    return (
        ("recipe", f"{resolved.source}{note}"),
        ("model", f"{model}{' in ' if method else ''}{' + '.join(method)}"),
        ("data", str(recipe.data.path or recipe.data.build)),
        ("ranks", f"{topology}, {threads} each, {precision} ({reason})"),
        *spread,
        ("batch", plan.describe_batch(recipe.batch.tokens)),
        (
            "steps",
            f"{recipe.steps}, a checkpoint every {recipe.checkpoint.every}, the newest {recipe.checkpoint.keep} stay",
        ),
        ("run", str(run.folder)),
    )


def _conclude(run: Run, recipe: Recipe, outcome: Outcome) -> None:
    """The first failure is the last thing said; a run that ended well says what to do with it."""
    where = word_for(run.folder)
    if outcome.state == "SUCCEEDED":
        say(f"done: step {outcome.step} of {recipe.steps}. Next:")
        say(f"  launch status {where}")
        say(f"  launch checkpoints export {where} {shlex.quote(f'{run.name}-export')}")
        say(f"  tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    elif outcome.state == "PREEMPTED":
        at = {None: "", 0: " before the first step"}.get(outcome.step, f" after step {outcome.step}")
        say(f"stopped{at} ({outcome.cause}). Resume with:")
        say(f"  launch resume {where}")
    else:
        for line in outcome.details.rstrip().splitlines():
            say(line)
        if outcome.log:
            say(f"log: {outcome.log}")
        say(f"failed: {outcome.cause}")
