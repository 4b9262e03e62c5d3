"""Make runs, or carry them on, and train them."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.errors import OwnerAlive, StoreError
from checkpoints.log import CommitLog
from checkpoints.owner import owner_is_alive
from checkpoints.store import open_store, probe
from cluster.backend import Backend, backend_named
from cluster.job import JobState
from launcher import loading
from launcher.code_snapshot import Tree, code_of, copy, digests_of_copy
from launcher.commands.refusals import refuse_absent, warnings
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
from launcher.groups import Group, describe_changes, group_of
from launcher.overrides import flatten
from launcher.places import remedy_for, word_for
from launcher.plan import Plan, resolve_precision
from launcher.recipe import Recipe
from launcher.runs import PREEMPTED_CODE, STOP_AFTER, Attempt, Outcome, Run, write_json
from launcher.supervise import Start, start_attempts, supervise
from launcher.terminal import answer, say
from launcher.watch import make_display

LEAVING_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A run that is to be made, or carried on.

    group: the one that it is made in, if it is. checkpoints: the URL of its store, where that is not in the run folder.
    """

    run: Run
    resolved: loading.Resolved
    plan: Plan
    group: Group | None = None
    checkpoints: str | None = None
    is_takeover: bool = False

    @property
    def exists(self) -> bool:
        return (self.run.folder / "run.json").exists()


def train_all(works: Sequence[Work], backend: Backend, arguments: argparse.Namespace) -> int:
    """Make the runs, or carry them on, and have them trained. None is touched when one of them would be refused."""
    ready = [checked for work in works if (checked := _checked(work, arguments)) is not None]
    if not ready:
        return 0
    starts = [start_of(work, len(ready), arguments) for work in ready]
    jobs = [start.job(len(start.run.attempts()) + 1) for start in starts]
    submissions = [backend.render([job]) for job in jobs] if backend.needs_launcher else [backend.render(jobs)]
    if not arguments.dry_run:
        for submission in submissions:
            backend.check(submission)
        for work in ready:
            _check_place(work)
        refuse_absent([work.resolved.recipe for work in ready], backend)
    for line in warnings(ready[0].resolved.recipe, ready[0].plan.topology, backend, arguments):
        say(line)
    for text in (text for submission in submissions for text in submission.warnings):
        say(f"note: {text}")
    if arguments.dry_run:
        from launcher.commands.dry_run import dry_run

        return dry_run(ready, starts, submissions, backend, arguments)
    _make(ready)
    if not backend.needs_launcher:
        return _submit(ready, starts, backend)
    return _train_here(ready, starts, backend)


def _checked(work: Work, arguments: argparse.Namespace) -> Work | None:
    """The work with what a run that exists adds to it; None for one that has ended well."""
    if work.exists:
        return _to_carry_on(work, arguments)
    if work.run.folder.exists():
        raise UsageError(f"{work.run.folder} exists and is not a run; choose another --name")
    return replace(work, is_takeover=arguments.takeover)


def _to_carry_on(work: Work, arguments: argparse.Namespace) -> Work | None:
    """Refuse what would not be the same run, and say what has changed."""
    run, attempts = work.run, work.run.attempts()
    outcome = attempts[-1].outcome() if attempts else None
    if outcome is not None and outcome.state == "SUCCEEDED":
        say(f"{run.name} has ended well at step {outcome.step}; there is nothing to resume")
        answer(str(run.folder))
        return None
    settings = flatten(loading.load_frozen(run.config).recipe) | flatten(work.resolved.recipe)
    refuse_unknown_fields(arguments.allow_change, list(settings))
    is_over = bool(attempts) and _has_batch_job_ended(run, attempts[-1], is_takeover=arguments.takeover)
    if not arguments.takeover and not is_over:
        _wait_for_owner(run, has_ended=outcome is not None)
    plan = _with_same_threads(run, work.plan)
    for line in check(_changes(run, work.resolved, plan), arguments.allow_change):
        say(line)
    return replace(
        work, plan=plan, group=group_of(run), checkpoints=run.record().get("checkpoints"),
        is_takeover=arguments.takeover or is_over,
    )  # fmt: skip


def start_of(work: Work, count: int, arguments: argparse.Namespace) -> Start:
    settings = {
        **_place(work.resolved.recipe, work.plan), "takeover": work.is_takeover,
        "allow_change": arguments.allow_change, "hang_seconds": arguments.hang_seconds,
        "grace_seconds": arguments.grace_seconds, "mtbf_hours": arguments.mtbf_hours,
    }  # fmt: skip
    name = work.group.name if work.group is not None and count > 1 else work.run.name
    topology = work.plan.topology
    return Start(
        run=work.run, name=name, checkpoints=work.checkpoints or work.run.checkpoints, recipe=work.resolved.recipe,
        topology=topology, settings=settings,
    )  # fmt: skip


def _check_place(work: Work) -> None:
    """Raises UsageError when a new run cannot have its checkpoints where it wants them, and NotExclusive."""
    if work.checkpoints is None or work.exists:
        return
    try:
        store = open_store(work.checkpoints)
        probe(store)
        is_taken = bool(store.list("log/"))
    except StoreError as error:
        remedy = remedy_for(work.checkpoints)
        raise UsageError(f"--checkpoints {work.checkpoints} cannot be written ({error.reason}); {remedy}") from error
    if is_taken:
        raise UsageError(f"--checkpoints: {store.url} has those of another run; choose another --name")


def _make(works: Sequence[Work]) -> None:
    """Runs that are new share one copy's reading of the code; those that exist get what is new in their settings."""
    tree: Tree | None = None
    for work in works:
        if work.exists:
            loading.freeze(work.resolved, work.run.code, work.run.config)
            _write_record(work.run, work)
            continue
        staging = _staging(work.run)
        tree = tree or _code_of(work)
        _create_run(work, tree, staging)


def _code_of(work: Work) -> Tree:
    tree = code_of(Path(work.resolved.source))
    if tree.left_out:
        say(f"left out of the code snapshot: {', '.join(tree.left_out)}")
    return tree


def _staging(run: Run) -> Run:
    """Where a run is made: the folder gets its name last, so that it is a whole run, or is not there."""
    staging = Run(run.folder.with_name(f".{run.name}.partial"))
    try:
        shutil.rmtree(staging.folder, ignore_errors=True)
        staging.folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"--runs-dir {run.folder.parent} cannot be written ({error.strerror}); choose another"
        ) from error
    return staging


def _create_run(work: Work, tree: Tree, staging: Run) -> None:
    """Freeze recipe and code."""
    run = work.run
    copy(tree, staging.code)
    loading.freeze(work.resolved, tree.root, staging.config)
    _write_record(staging, work)
    synchronize(staging.folder)  # checkpoints outlive a crash of the machine, so the code that can go on with them must
    os.rename(staging.folder, run.folder)
    synchronize(run.folder.parent)


def _write_record(run: Run, work: Work) -> None:
    """To `run`, which may not have its name yet."""
    write_json(run.folder / "run.json", record_of(work))


def record_of(work: Work) -> dict[str, object]:
    """What a run's run.json says."""
    resolved, group = work.resolved, work.group
    record: dict[str, object] = {
        "format": work.run.format_with(copies=resolved.recipe.checkpoint.local_folder is not None),
        "run": work.run.name,
        "recipe": resolved.source,
        "steps": resolved.recipe.steps,
    }
    if group is not None:
        record["group"] = group.record_of(resolved.recipe)
    if work.checkpoints is not None:
        record["checkpoints"] = work.checkpoints
    return record


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


def _train_here(works: Sequence[Work], starts: Sequence[Start], backend: Backend) -> int:
    """One run after the other. One that fails is no reason not to train the others; one that is stopped is."""
    codes: list[int] = []  # of the runs so far
    for work, start in zip(works, starts, strict=True):
        if len(works) > 1:
            say(f"run {len(codes) + 1} of {len(works)}")
        say_all([work], backend)
        outcome = _train_one(start, backend)
        codes.append(outcome.exit_code)
        if outcome.exit_code == PREEMPTED_CODE and outcome.cause != STOP_AFTER:
            break
    if len(works) > 1 and works[0].group is not None:
        say(f"{codes.count(0)} of {len(works)} runs have ended well:")
        say(f"  launch status {_word_for(works[0].group, works)}")
    return next(filter(None, reversed(codes)), 0)  # that of a stop, if there was one


def _train_one(start: Start, backend: Backend) -> Outcome:
    display = make_display(start.recipe.steps)
    try:
        outcome = supervise(start, backend, display)
    finally:
        display.close()
    answer(str(start.run.folder))
    _conclude(start.run, start.recipe, outcome)
    return outcome


def _submit(works: Sequence[Work], starts: Sequence[Start], backend: Backend) -> int:
    """Leave the runs to a scheduler, which starts them as often as it has to."""
    say_all(works, backend)
    attempts = start_attempts(starts, backend)
    handles, group = [attempt.record()["handle"] for attempt in attempts], works[0].group
    if len(works) > 1 and group is not None:
        where = _word_for(group, works)
        say(f"{backend.name} jobs {handles[0]} to {handles[-1]} are submitted. Next:")
    else:
        where = word_for(works[0].run.folder)
        say(f"{backend.name} job {handles[0]} is submitted. Next:")
    say(f"  launch status {where}")
    say(f"  launch logs {word_for(works[0].run.folder)} -f")
    say(f"  launch cancel {where}")
    for work in works:
        answer(str(work.run.folder))
    return 0


def _word_for(group: Group, works: Sequence[Work]) -> str:
    return word_for(works[0].run.folder.with_name(group.name))


def say_all(works: Sequence[Work], backend: Backend) -> None:
    """What the runs have in common, and where each is."""
    for title, text in _describe(works[0].resolved, works[0].plan):
        say(f"{title:10} {text}")
    if backend.note:
        say(f"{'machines':10} {backend.note}")
    for work in works:
        changes = describe_changes(work.group.record_of(work.resolved.recipe)["changes"]) if work.group else ""
        say(f"{'run':10} {work.run.folder}{f'  {changes}' if changes else ''}")


def _describe(resolved: loading.Resolved, plan: Plan) -> Sequence[tuple[str, str]]:
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
        ("steps", f"{recipe.steps}, {_often(recipe)}, the newest {recipe.checkpoint.keep} stay"),
    )


def _often(recipe: Recipe) -> str:
    every = recipe.checkpoint.every
    return "checkpoints as often as loses least" if every == "auto" else f"a checkpoint every {every}"


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
