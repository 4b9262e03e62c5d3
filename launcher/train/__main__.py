"""The agent, once per node: torch elastic starts the ranks, and starts them again when one dies.

    python -m launcher.train RUN_FOLDER ATTEMPT
    python -m launcher.train RUN_FOLDER            in a batch job: its attempt is found, or made, in the run folder

Each restart is a new `elastic_launch` with a new store: torch 2.13 hands the old keys of a shared store to restarted
ranks, which then wait for peers that are gone. Ranks are forked from a forkserver that has the imports done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cluster.allocation import Allocation, batch_allocation, given_allocation
from cluster.errors import ClusterError
from cluster.memory import out_of_memory_kills
from cluster.preemption import Notice, handle_signals
from launcher.disk import disk_trouble
from launcher.errors import LaunchError, NoProgress
from launcher.job_start import attempt_of
from launcher.runs import PREEMPTED_CODE, Attempt, Outcome, Run
from launcher.status import newest_commit
from launcher.train.failures import Failure, first_failure, first_of
from launcher.train.forkserver import start_forkserver
from launcher.train.grace import Grace, leave_in_time
from launcher.train.nodes import NodeLost, Nodes, own_address
from launcher.train.rank import FINISHED
from launcher.train.stores import Stores
from launcher.train.watchdog import Watchdog

RESTARTS_WITHOUT_COMMIT = 3
DISK_SECONDS = 0.5
RENDEZVOUS_SECONDS = 60


def main(run_folder: str, attempt_number: str | None = None) -> int:
    notice = Notice.from_environment()
    handle_signals(notice)
    run = Run(Path(run_folder))
    try:
        if attempt_number is not None:
            attempt = run.attempt(int(attempt_number))
            allocation = given_allocation()
            _leave_in_time(attempt, notice, allocation)
            return _outcome(run, attempt, allocation, notice).exit_code
        allocation = batch_allocation()
        attempt = attempt_of(run, allocation)
        _print_to(attempt.logs / f"node-{allocation.node}.log")
        _leave_in_time(attempt, notice, allocation)
        outcome = attempt.outcome() or _outcome(run, attempt, allocation, notice)
    except (LaunchError, ClusterError) as error:
        print(f"launch: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    is_resumable = outcome.exit_code == PREEMPTED_CODE
    return 0 if is_resumable and not outcome.wants_another_start else outcome.exit_code


def _print_to(log: Path) -> None:
    """From here on what this process and its children print is there: each start of a job has logs of its own."""
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _leave_in_time(attempt: Attempt, notice: Notice, allocation: Allocation) -> None:
    """By what the job was promised, else by what a person counts on, else by what the first node is told."""
    seconds = attempt.record()["grace_seconds"] if allocation.grace_seconds is None else allocation.grace_seconds
    leave_in_time(Grace(notice, seconds), attempt, allocation.ask_end if allocation.node == 0 else None)


def _outcome(run: Run, attempt: Attempt, allocation: Allocation, notice: Notice) -> Outcome:
    """Work on the attempt to its end."""
    address = own_address(allocation)
    _import_elastic()
    start_forkserver(attempt.record()["preload"])
    nodes = Nodes(attempt, allocation, address)
    try:
        if nodes.meet(notice):
            outcome = _run_until_it_ends(run, attempt, notice, nodes)
        else:
            outcome = Outcome(state="PREEMPTED", cause=notice.reason(), exit_code=PREEMPTED_CODE)
    except NodeLost as error:
        outcome = Outcome(state="LOST", cause=str(error), exit_code=PREEMPTED_CODE)
    if nodes.leads and attempt.outcome() is None:
        with contextlib.suppress(OSError):  # the launcher sees what is wrong with the disk, and says it
            attempt.write_outcome(outcome)
    nodes.close()
    return outcome


def _import_elastic() -> None:
    """Before other nodes count on our beats: loading libraries from a busy file system can hold the GIL for long."""
    # Failures are told by us. Formatting its own report makes torch import its compiler: a second lost per attempt.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    import torch.distributed.launcher.api  # noqa: F401


def _run_until_it_ends(run: Run, attempt: Attempt, notice: Notice, nodes: Nodes) -> Outcome:
    record = attempt.record()
    watchdog = Watchdog(attempt, nodes, record["ranks_per_node"], record["hang_seconds"])
    judge = _Judge(run, attempt, notice)
    stores = Stores()
    restart, fruitless = 0, 0
    while True:
        nodes.begin()
        with watchdog.watch(restart, fruitless):
            failure = _run_ranks(run, attempt, restart, nodes, stores, record["ranks_per_node"], watchdog.pulses)
        if watchdog.has_ended_ranks:
            failure = watchdog.failure
        if failure is not None:
            nodes.tell_that_ranks_ended()
        told = nodes.gather({"failure": failure and asdict(failure), "notice": notice.reason()})
        verdict = nodes.share(partial(judge.verdict, restart, told))
        if verdict["outcome"] is not None:
            return Outcome(**verdict["outcome"])
        restart, fruitless = restart + 1, verdict["fruitless"]


class _Judge:
    """The first node's agent decides for all whether ranks are started again."""

    def __init__(self, run: Run, attempt: Attempt, notice: Notice) -> None:
        self._run = run
        self._attempt = attempt
        self._notice = notice
        self._events = attempt.open_events()
        self._fruitless = 0
        self._commit = newest_commit(run)

    def verdict(self, restart: int, told: list[dict[str, Any]]) -> dict[str, Any]:
        """`outcome` of the attempt, None when it goes on; and how often in a row ranks ended without a new commit."""
        outcome = self._attempt.outcome() or self._after(restart, told)
        return {"outcome": outcome and asdict(outcome), "fruitless": self._fruitless}

    def _after(self, restart: int, told: list[dict[str, Any]]) -> Outcome | None:
        failure = first_of([Failure(**node["failure"]) for node in told if node["failure"] is not None])
        if failure.is_retryable:
            _wait_for_disk(self._run, self._notice)
        reasons = [reason for reason in (self._notice.reason(), *(node["notice"] for node in told)) if reason]
        if reasons and failure.is_retryable:
            return Outcome(state="PREEMPTED", cause=reasons[0], exit_code=PREEMPTED_CODE)
        before, self._commit = self._commit, newest_commit(self._run)  # on these machines one on their disks is as good
        self._fruitless = self._fruitless + 1 if self._commit == before else 0
        if not failure.is_retryable or self._fruitless > RESTARTS_WITHOUT_COMMIT:
            return _failed(failure, self._fruitless)
        self._events.tell("restarted", restart=restart + 1, cause=str(failure))
        return None


def _wait_for_disk(run: Run, notice: Notice) -> None:
    """Return when ranks could claim the run again, or were asked to stop. The launcher says meanwhile what is wrong."""
    while disk_trouble(run.folder) is not None and not notice.is_given():
        time.sleep(DISK_SECONDS)


def _failed(failure: Failure, fruitless: int) -> Outcome:
    cause, exit_code = str(failure), failure.exit_code
    if failure.is_retryable:
        cause = f"{fruitless} times in a row without a new commit: {failure}"
        exit_code = NoProgress.exit_code
    details = "" if failure.is_explained else failure.details
    return Outcome(
        state="FAILED", cause=cause, exit_code=exit_code, details=details, log=failure.log,
        is_refused=failure.kind == "owned",
    )  # fmt: skip


def _run_ranks(
    run: Run, attempt: Attempt, restart: int, nodes: Nodes, stores: Stores, ranks_per_node: int, pulses: str
) -> Failure | None:
    """Run all ranks of this node once: the first failure, or None when the attempt has ended well."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from launcher.train.rank import main as rank_main

    made: list[Any] = []

    def make_store() -> dict[str, Any]:
        # Elastic and the ranks share it. (Elastic's c10d rendezvous sleeps up to 0.3 s at random.)
        made.append(stores.make(nodes.address))
        return {"endpoint": f"{nodes.address}:{made[0].port}"}

    config = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=ranks_per_node,
        run_id=f"{run.name}-{attempt.number}-{restart}",
        rdzv_backend="static",
        rdzv_endpoint=nodes.share(make_store)["endpoint"],
        rdzv_configs={"rank": nodes.node, "timeout": RENDEZVOUS_SECONDS},
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(attempt.folder / "elastic")),
        local_addr=nodes.address,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=30,
    )
    arguments = (str(run.folder), attempt.number, restart, os.getpid(), pulses)
    kills_before = out_of_memory_kills()
    try:
        elastic_launch(config, rank_main)(*arguments)
    except ChildFailedError as error:  # a rank never returns: to elastic, finishing is a failure like any other
        dead_rank, dead = min(error.failures.items())
        if dead.exitcode == FINISHED or attempt.outcome() is not None:
            return None
        lacked_memory = out_of_memory_kills() > kills_before
        return first_failure(attempt, restart, dead_rank, dead.exitcode, for_lack_of_memory=lacked_memory)
    except (DistError, RendezvousError) as error:
        return _no_rendezvous(nodes.node * ranks_per_node, error)
    raise AssertionError("a rank returned")


def _no_rendezvous(rank: int, error: Exception) -> Failure:
    cause = f"its node did not find the others: {' '.join(str(error).split())[:200]}"
    return Failure(rank=rank, host=socket.gethostname(), kind="peer", cause=cause, time=time.time())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
