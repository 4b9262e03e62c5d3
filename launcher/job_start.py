"""Which attempt a start of a batch job is: the one that was submitted, or a new one if the scheduler starts it again.

The first node decides, and makes the new attempt; the others wait for it to appear in the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from multiprocessing import get_context
from typing import Any

from cluster.allocation import Allocation
from cluster.errors import ClusterError
from cluster.topology import Topology
from launcher.errors import NoProgress, RunFailed
from launcher.loading import load_frozen
from launcher.plan import make_plan
from launcher.runs import Attempt, Outcome, Run
from launcher.status import commit_count

APPEAR_SECONDS = 120.0
LOST_STARTS_WITHOUT_COMMIT = 3
_POLL_SECONDS = 0.2
_FORK = get_context("fork")


def attempt_of(run: Run, allocation: Allocation) -> Attempt:
    """The attempt that this start of the job works on; it has an outcome already if there is nothing to do.

    Raises ClusterError when no attempt was submitted as this job, or the first node does not name one in time.
    """
    if allocation.node == 0:
        return _named(run, allocation) or _next(run, allocation)
    deadline = time.monotonic() + APPEAR_SECONDS
    while time.monotonic() < deadline:
        if (attempt := _named(run, allocation)) is not None:
            return attempt
        time.sleep(_POLL_SECONDS)
    raise ClusterError(
        f"{allocation.hosts[0]} has not begun an attempt within {APPEAR_SECONDS:.0f} s; is {run.folder} shared by all?"
    )


def _named(run: Run, allocation: Allocation) -> Attempt | None:
    for attempt in reversed(run.attempts()):
        record = attempt.record()
        if (record.get("handle"), record.get("start")) == (allocation.job, allocation.start):
            return attempt
    return None


def _next(run: Run, allocation: Allocation) -> Attempt:
    attempts = run.attempts()
    if not attempts:
        raise ClusterError(f"{run.folder} has no attempt; submit one with launch resume {run.folder}")
    newest = attempts[-1]
    record = newest.record()
    # The launcher may not have had the time to note which job it was given.
    if record.get("handle", allocation.job) != allocation.job:
        raise ClusterError(f"{run.folder} went on as job {record['handle']}; job {allocation.job} stops")
    mine = {**record, "handle": allocation.job, "start": allocation.start, **_spread(run, record, allocation.nodes)}
    outcome = newest.outcome()
    if "start" not in record:  # until now it has waited
        newest.write_record({**mine, "started": time.time()})
        return newest
    if outcome is not None and not outcome.wants_another_start:
        newest.write_record(mine)
        return newest
    commits = _commit_count(run)
    if (lost := _lost_starts(run, commits)) > LOST_STARTS_WITHOUT_COMMIT:
        cause = f"the job was lost or out of time {lost} times in a row without a new commit"
        newest.write_outcome(Outcome(state="FAILED", cause=cause, exit_code=NoProgress.exit_code))
        newest.write_record(mine)
        return newest
    return run.new_attempt({**mine, "started": time.time(), "commits": commits})


def _spread(run: Run, record: Mapping[str, Any], nodes: int) -> dict[str, object]:
    """What is otherwise when the scheduler gives another number of nodes than before; the global batch stays."""
    if nodes == record["nodes"]:
        return {}
    topology = Topology(nodes=nodes, ranks_per_node=record["ranks_per_node"], has_gpus=record["has_gpus"])
    plan = make_plan(load_frozen(run.config).recipe, topology, cores_per_node=1)  # as many threads as before
    return {"nodes": nodes, "micro": plan.micro, "asked_nodes": record.get("asked_nodes", record["nodes"])}


def _commit_count(run: Run) -> int:
    """Asked in a process of its own: one that has talked to a bucket has threads, and ranks are forks of this one.

    Raises RunFailed when the log cannot be read; why, that process has printed.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=lambda: sender.send(commit_count(run)))
    process.start()
    sender.close()
    with receiver:
        try:
            return int(receiver.recv())
        except EOFError as error:
            raise RunFailed(f"the commit log in {run.checkpoints} cannot be read") from error
        finally:
            process.join()


def _lost_starts(run: Run, commits: int) -> int:
    """How many attempts were lost, or too short for a save, since the newest commit; not those that were preempted."""
    lost = 0
    for attempt in reversed(run.attempts()):
        if attempt.record().get("commits") != commits:
            break
        outcome = attempt.outcome()
        lost += outcome is None or outcome.state == "LOST" or outcome.is_out_of_time
    return lost
