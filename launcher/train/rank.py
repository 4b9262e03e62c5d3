"""One rank: what the agent starts, as many times as there are GPUs (or CPU ranks) on the node."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cluster.preemption import Notice, watch_signals
from cluster.processes import die_with_parent
from launcher.runs import Attempt, Outcome, Run
from launcher.train.failures import describe, write_failure
from launcher.train.pulse import Pulse
from launcher.train.watchdog import STACKS_SIGNAL

if TYPE_CHECKING:
    from launcher.train.session import Session

PEER_PATIENCE_SECONDS = 5.0

FINISHED = 64  # the exit code of a rank whose attempt has an outcome


def main(run_folder: str, attempt_number: int, restart: int, agent: int, pulses: str) -> NoReturn:
    """Train to the end of this restart; the process ends here, and what it leaves is an outcome or a failure."""
    die_with_parent(signal.SIGKILL)
    notice = Notice.from_environment()
    watch_signals(notice, supervisor=agent, leave=_leave)
    run = Run(Path(run_folder))
    attempt = run.attempt(attempt_number)
    rank = int(os.environ["RANK"])
    log = _redirect_output(attempt, rank, restart)
    pulse = Pulse(pulses, int(os.environ["LOCAL_RANK"]), rank)
    try:
        from launcher.train.loop import train
        from launcher.train.session import open_session

        session = open_session(run, attempt, restart, agent, notice, pulse)
        outcome = train(session)
        _finish(session, replace(outcome, log=str(log)))
    except BaseException as error:
        _ignore_data_workers()
        failure = describe(error, rank, log)
        print(failure.details, file=sys.stderr, flush=True)
        write_failure(attempt, restart, failure)
        if failure.kind == "peer":
            # Let the agent see the rank that really died first; it ends this one as soon as it has.
            time.sleep(PEER_PATIENCE_SECONDS)
        _leave()


def _finish(session: Session, outcome: Outcome) -> NoReturn:
    """Record how the attempt ended, once every rank is done.

    The rank does not return to torch elastic: a rank that is killed while elastic collects return values leaves the
    agent waiting for ever. Nor are process groups destroyed: their destructors can hang in a forked process.
    """
    import torch.distributed as dist

    if session.rank == 0:
        session.attempt.write_outcome(outcome)
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FINISHED)


def _ignore_data_workers() -> None:
    """torch raises an error in whatever runs when it hears of a dead data worker: the second would hide the first."""
    with contextlib.suppress(RuntimeError):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _leave() -> NoReturn:
    os._exit(1)


class _PatientLog(io.TextIOWrapper):
    """A log on a disk that may be full: what does not fit is dropped, and whoever prints goes on."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _redirect_output(attempt: Attempt, rank: int, restart: int) -> Path:
    """Everything that this process prints, from C++ too, goes to the rank's log."""
    path = attempt.rank_log(rank)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = _PatientLog(open(1, "wb", closefd=False), line_buffering=True)  # noqa: SIM115  lives as long as we do
    sys.stderr = _PatientLog(open(2, "wb", closefd=False), line_buffering=True)  # noqa: SIM115
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)  # in C: it needs no GIL
    print(f"--- restart {restart}, pid {os.getpid()} ---", flush=True)
    return path
