"""Copies commits from the disks of the ranks' nodes to the store, one after the other, while training goes on."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.errors import StoreError, one_line
from checkpoints.log import Claim
from checkpoints.manifest import File
from checkpoints.store import Store
from checkpoints.writer import Writer

_GIVEN_UP = "it was ended for a save that goes to the store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """How one copy ended: the commit is in the store, or `failure` says why it is not."""

    commit: Commit
    seconds: float
    failure: str


@dataclass(slots=True, kw_only=True)
class _Job:
    """One rank's part in a copy. trouble: why its file is not worth one; empty when it is."""

    commit: Commit
    file: File | None
    trouble: str
    is_given_up: bool = False
    is_over: threading.Event = field(default_factory=threading.Event)


class Uploads:
    """Each rank copies its own file, and reads it back; rank 0 records in the log that all have.

    Every rank has one, and is asked for the same copies. `channel` and `writer` must be its own, because a copy holds
    them. `claim` is rank 0's.
    """

    def __init__(
        self,
        *,
        copies: Store,
        store: Store,
        channel: Channel,
        writer: Writer,
        claim: Claim | None,
        rank: int,
        world_size: int,
        deadline_seconds: float,
    ) -> None:
        self.results: deque[Upload] = deque()  # on rank 0 alone, as is what follows
        self.failures_in_a_row = 0  # not counting those that were given up
        self._copies = copies
        self._store = store
        self._channel = channel
        self._writer = writer
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._deadline_seconds = deadline_seconds
        self._is_inline = not store.crosses_processes
        self._job: _Job | None = None  # the newest

    @property
    def running(self) -> int:
        """The `n` of the commit that is being copied; 0 for none."""
        job = self._job
        return 0 if job is None or job.is_over.is_set() else job.commit.n

    def begin(self, commit: Commit, file: File | None, trouble: str) -> None:
        """Copy this rank's file of the commit, where it has one. On rank 0 no other copy may be running.

        trouble: what is wrong with the file, which is then not copied; empty when it is right. Another rank ends a copy
        that rank 0 has lost patience with.
        """
        self.give_up()
        self.wait(self._deadline_seconds)  # not for long: its writer has ended
        if self._job is not None:
            self._channel.forget(f"{self._job.commit.n}/{self._rank}")
        job = self._job = _Job(commit=commit, file=file, trouble=trouble)
        if self._is_inline:
            self._run(job)
        else:
            threading.Thread(target=self._run, args=[job], name="uploads", daemon=True).start()

    def give_up(self) -> None:
        """End the copy that is under way, if one is."""
        job = self._job
        if job is not None and not job.is_over.is_set():
            job.is_given_up = True
            self._writer.close()

    def wait(self, seconds: float) -> None:
        """Until the copy that is under way has ended, or so long."""
        if self._job is not None:
            self._job.is_over.wait(seconds)

    def close(self) -> None:
        self.give_up()
        self._writer.close()

    def _run(self, job: _Job) -> None:
        started = time.perf_counter()
        try:
            failure = self._failure_of(job)
            if self._claim is not None:
                seconds = time.perf_counter() - started
                self.results.append(Upload(commit=job.commit, seconds=seconds, failure=failure))
                self.failures_in_a_row = self.failures_in_a_row + (not job.is_given_up) if failure else 0
        finally:
            job.is_over.set()

    def _failure_of(self, job: _Job) -> str:
        """Why the commit is not in the store; empty when it is, as far as this rank knows."""
        try:
            failure = self._copy(job)
            self._channel.post(f"{job.commit.n}/{self._rank}", failure.encode())
            return failure if self._claim is None else self._conclude(self._claim, job.commit)
        except Exception as error:  # the next save raises it, if it is more than this copy's
            return one_line(f"rank {self._rank}: {error}")

    def _copy(self, job: _Job) -> str:
        """Why the file is not in the store; empty when it is, and is right there."""
        if job.trouble or job.file is None:
            return job.trouble
        folder, seconds = job.commit.folder, self._deadline_seconds
        try:
            self._writer_for(job).copy(self._copies, self._store, folder, job.file, seconds)
            self._writer_for(job).verify(self._store, folder, job.file, seconds)
        except Exception as error:  # whatever it is, the other ranks have to hear of it
            return _GIVEN_UP if job.is_given_up else one_line(f"rank {self._rank}: {error}")
        return ""

    def _writer_for(self, job: _Job) -> Writer:
        if job.is_given_up:  # a writer that was ended for that would start again
            raise StoreError("copy", job.commit.folder, _GIVEN_UP)
        return self._writer

    def _conclude(self, claim: Claim, commit: Commit) -> str:
        """Why the commit is not in the store; empty when it is, and the log says so."""
        said = self._channel.collect(f"{commit.n}", range(self._world_size), self._deadline_seconds)
        failures = [reason.decode() for reason in said if reason]
        if not failures:
            claim.stored(commit.n)
        return "".join(failures[:1])
