"""The first failure of an attempt: each rank writes what ended it, the agent picks the one that came first."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints.errors import (
    CorruptCheckpoint,
    Fenced,
    NoIntactCheckpoint,
    NotExclusive,
    OwnerAlive,
    PeerSilent,
    StateMismatch,
    StoreError,
)
from launcher.errors import LaunchError, RunFailed
from launcher.runs import Attempt, read_json, write_json

_PEER_LOST = re.compile(r"/gloo/|NCCL|Connection (closed|reset|refused)|Broken pipe")
_NOT_DETERMINISTIC = re.compile(r"^(\S+) does not have a deterministic implementation")
_WORKER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?[^)]*\) (exited|is killed)")


class NonFiniteLoss(Exception):
    """The loss of this rank is NaN or infinite; training on would destroy the weights."""


class NoGradient(Exception):
    """A part of the model that is to be trained would never learn."""


class PeerFailed(Exception):
    """Another rank reported a failure that this rank must stop for too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What ended one rank. `kind` decides whether a restart can help."""

    rank: int
    host: str
    kind: str
    cause: str
    time: float
    details: str = ""
    log: str = ""

    @property
    def is_retryable(self) -> bool:
        return self.kind in ("peer", "killed", "worker", "storage", "hung")

    @property
    def is_explained(self) -> bool:
        """Whether the cause says what to do, so that nobody needs the traceback: the log has it."""
        return self.kind in ("usage", "owned", "no intact checkpoint", "fenced", "loss")

    @property
    def exit_code(self) -> int:
        return {"usage": 2, "owned": 2, "no intact checkpoint": 4, "fenced": 93}.get(self.kind, 1)

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.cause}"


def describe(error: BaseException, rank: int, log: Path) -> Failure:
    kind, cause = _classify(error)
    details = "".join(traceback.format_exception(error))
    return Failure(
        rank=rank, host=socket.gethostname(), kind=kind, cause=cause, time=time.time(), details=details, log=str(log)
    )


def _classify(error: BaseException) -> tuple[str, str]:
    """(kind, cause in one line)."""
    if died := _find_dead_worker(error):
        return "worker", f"a data worker died: {died} (was it out of memory, or is /dev/shm full?)"
    text = " ".join(str(error).split())
    for types, kind, cause in _KNOWN:
        if isinstance(error, types):
            return kind, cause.format(text)
    if isinstance(error, OSError):
        return _classify_os_error(error, text)
    # Imported here, not above: the agent handles signals before it imports torch.
    import torch
    from torch.distributed import DistError

    if isinstance(error, torch.OutOfMemoryError):
        return "memory", f"out of GPU memory: {text.split('. ')[0]}; use a smaller batch.micro"
    if isinstance(error, RuntimeError):
        if isinstance(error, DistError):
            return "peer", f"lost the other ranks: {text[:200]}"
        if found := _NOT_DETERMINISTIC.search(text):
            remedy = "use deterministic=false, and a run that is killed may end with other weights"
            return "usage", f"the operation {found[1]} has no deterministic kernel; {remedy}"
        if _PEER_LOST.search(text):
            return "peer", f"lost the other ranks: {text[:200]}"
    return "error", f"{type(error).__name__}: {text}" if text else type(error).__name__


def _find_dead_worker(error: BaseException) -> str | None:
    """What torch says of a data worker that died, also where it is the context of `error`: it is raised from a signal's
    handler, in whatever the rank is doing, and what is cut short there may well fail in its own way."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RuntimeError) and (found := _WORKER_DIED.search(str(link))):
            return found[0]
        link = link.__cause__ or link.__context__
    return None


_KNOWN: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str, str], ...] = (
    (Fenced, "fenced", "another launcher took this run over: {}"),
    ((NoIntactCheckpoint, CorruptCheckpoint), "no intact checkpoint", "{}"),
    (RunFailed, "storage", "{}"),
    (OwnerAlive, "owned", "{}"),
    ((LaunchError, StateMismatch, NotExclusive), "usage", "{}"),
    ((NonFiniteLoss, NoGradient), "loss", "{}"),
    ((PeerFailed, PeerSilent, ConnectionError), "peer", "{}"),
    (MemoryError, "memory", "out of memory; use a smaller batch.micro"),
    (StoreError, "storage", "{}"),
)


def _classify_os_error(error: OSError, text: str) -> tuple[str, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "storage", f"disk full: {error.filename or text}; free some space and resume"
    if isinstance(error, FileNotFoundError):
        return "missing", f"missing file: {error.filename or text}"
    return "storage", f"storage failed: {text}"


def write_failure(attempt: Attempt, restart: int, failure: Failure) -> None:
    """Best effort: on a full disk the agent is left with the exit code."""
    folder = attempt.folder / "failures"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        write_json(folder / f"restart-{restart}-rank-{failure.rank}.json", asdict(failure))


def first_failure(
    attempt: Attempt, restart: int, dead_rank: int, exit_code: int, *, for_lack_of_memory: bool
) -> Failure:
    """What ended this restart. A rank that only lost its peers is never the first, if any other failed.

    for_lack_of_memory: the kernel has ended processes of this job for that reason meanwhile.
    """
    written = [
        Failure(**value)
        for path in (attempt.folder / "failures").glob(f"restart-{restart}-rank-*.json")
        if (value := read_json(path)) is not None
    ]
    own = sorted((failure for failure in written if failure.kind != "peer"), key=lambda failure: failure.time)
    if own:
        return own[0]
    log = str(attempt.rank_log(dead_rank))
    if exit_code < 0:
        return Failure(
            rank=dead_rank,
            host=socket.gethostname(),
            kind="killed",
            cause=_describe_signal(-exit_code, for_lack_of_memory=for_lack_of_memory),
            time=time.time(),
            log=log,
        )
    if written:
        return min(written, key=lambda failure: failure.time)
    cause = f"exited with code {exit_code} and said nothing"
    return Failure(rank=dead_rank, host=socket.gethostname(), kind="killed", cause=cause, time=time.time(), log=log)


def first_of(failures: Sequence[Failure]) -> Failure:
    """Of the failures of several nodes the one that the others follow from."""
    own = [failure for failure in failures if failure.kind != "peer"]
    if not failures:
        cause = "its ranks ended, and no node says why"
        return Failure(rank=0, host=socket.gethostname(), kind="peer", cause=cause, time=time.time())
    return min(own or failures, key=lambda failure: failure.time)


def _describe_signal(number: int, *, for_lack_of_memory: bool) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL and for_lack_of_memory:
        return f"killed by {name}: the kernel ended processes of this job for lack of memory"
    return f"killed by {name}"
