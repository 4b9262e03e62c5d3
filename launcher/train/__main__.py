"""The agent, once per node: torch elastic starts the ranks, and starts them again when one dies.

    python -m launcher.train RUN_FOLDER ATTEMPT

Each restart is a new `elastic_launch` with a new store: torch 2.13 hands the old keys of a shared store to restarted
ranks, which then wait for peers that are gone. Ranks are forked from a forkserver that has the imports done.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import sys
import time
from pathlib import Path

from cluster.memory import out_of_memory_kills
from cluster.preemption import Notice, handle_signals, stop_signals_held
from launcher.disk import disk_trouble
from launcher.errors import NoProgress
from launcher.runs import Attempt, Outcome, Run
from launcher.status import commit_count
from launcher.train.failures import Failure, first_failure
from launcher.train.grace import Grace, leave_in_time
from launcher.train.watchdog import Watchdog

RESTARTS_WITHOUT_COMMIT = 3
DISK_SECONDS = 0.5


def main(run_folder: str, attempt_number: str) -> int:
    notice = Notice.from_environment()
    handle_signals(notice)
    run = Run(Path(run_folder))
    attempt = run.attempt(int(attempt_number))
    record = attempt.record()
    leave_in_time(Grace(notice, record["grace_seconds"]), attempt)
    _start_forkserver(record["preload"])
    outcome = _run_until_it_ends(
        run, attempt, notice, ranks=record["ranks_per_node"], hang_seconds=record["hang_seconds"]
    )
    if attempt.outcome() is None:
        with contextlib.suppress(OSError):  # the launcher sees what is wrong with the disk, and says it
            attempt.write_outcome(outcome)
    return outcome.exit_code


def _start_forkserver(modules: list[str]) -> None:
    """Start it before torch is imported here, so that both import at the same time."""
    # Lets torch look for GPUs without making a CUDA context, which a forked rank could not use.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    multiprocessing.set_forkserver_preload(["launcher.train.preload", *modules])
    multiprocessing.resource_tracker.ensure_running()  # first: starting it unblocks signals
    with stop_signals_held():
        multiprocessing.forkserver.ensure_running()


def _run_until_it_ends(run: Run, attempt: Attempt, notice: Notice, *, ranks: int, hang_seconds: float) -> Outcome:
    events = attempt.open_events()
    watchdog = Watchdog(attempt, ranks, hang_seconds)
    restart, fruitless = 0, 0
    commits = commit_count(run)
    while True:
        with watchdog.watch(restart, fruitless):
            result = _run_ranks(run, attempt, restart, ranks, watchdog.pulses)
        if isinstance(result, Outcome):
            return result
        result = watchdog.failure or result
        if result.is_retryable:
            _wait_for_disk(run, notice)
        if notice.is_given() and result.is_retryable:
            return Outcome(state="PREEMPTED", cause=notice.reason(), exit_code=75)
        before, commits = commits, commit_count(run)
        fruitless = fruitless + 1 if commits == before else 0
        if not result.is_retryable or fruitless > RESTARTS_WITHOUT_COMMIT:
            return _failed(result, fruitless)
        restart += 1
        events.tell("restarted", restart=restart, cause=str(result))


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
    return Outcome(state="FAILED", cause=cause, exit_code=exit_code, details=details, log=failure.log)


def _run_ranks(run: Run, attempt: Attempt, restart: int, ranks: int, pulses: str) -> Outcome | Failure:
    """Run all ranks of this node once, to their common outcome or to the first failure."""
    # Failures are told by us. Formatting its own report makes torch import its compiler: a second lost per attempt.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from launcher.train.rank import main as rank_main

    # A new store on a free port; elastic and the ranks share it. (Its c10d rendezvous sleeps up to 0.3 s at random.)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=f"{run.name}-{attempt.number}-{restart}",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{store.port}",
        rdzv_configs={"rank": 0},
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(attempt.folder / "elastic")),
        local_addr="127.0.0.1",
        signals_to_handle="SIGQUIT",
        shutdown_timeout=30,
    )
    arguments = (str(run.folder), attempt.number, restart, os.getpid(), pulses)
    kills_before = out_of_memory_kills()
    try:
        elastic_launch(config, rank_main)(*arguments)
    except ChildFailedError as error:  # a rank never returns: to elastic, finishing is a failure like any other
        outcome = attempt.outcome()
        dead_rank, dead = min(error.failures.items())
        lacked_memory = out_of_memory_kills() > kills_before
        return outcome or first_failure(attempt, restart, dead_rank, dead.exitcode, for_lack_of_memory=lacked_memory)
    raise AssertionError("a rank returned")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
