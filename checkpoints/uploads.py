"""Copies commits from the disks of the ranks' nodes to the store, one after the other, while training goes on."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.errors import CheckpointError, PeerSilent, one_line
from checkpoints.log import Claim
from checkpoints.manifest import File
from checkpoints.store import Store
from checkpoints.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """How one copy ended: the commit is in the store, or `failure` says why it is not."""

    commit: Commit
    seconds: float
    failure: str


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
        self.results: deque[Upload] = deque()  # on rank 0 alone
        self._copies = copies
        self._store = store
        self._channel = channel
        self._writer = writer
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._deadline_seconds = deadline_seconds
        self._is_inline = not store.crosses_processes
        self._thread = ThreadPoolExecutor(1, "uploads")
        self._last: Future[None] | None = None
        self._commit: Commit | None = None

    @property
    def running(self) -> int:
        """The `n` of the commit that is being copied; 0 for none."""
        return self._commit.n if self._commit is not None else 0

    def begin(self, commit: Commit, file: File | None) -> None:
        """Copy this rank's file of the commit, where it has one. On rank 0 no other copy may be running.

        Another rank ends one that rank 0 has lost patience with. Raises what nobody foresaw in the copy before.
        """
        self.give_up()
        if self._last is not None and self._last.done():
            self._last.result()
        self._commit = commit
        if self._is_inline:
            self._run(commit, file)
        else:
            self._last = self._thread.submit(self._run, commit, file)

    def give_up(self) -> None:
        """End the copy that is under way, if one is."""
        if self.running:
            self._writer.close()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._writer.close()

    def _run(self, commit: Commit, file: File | None) -> None:
        started = time.perf_counter()
        try:
            with suppress(PeerSilent):  # rank 0 is gone, and with it this attempt
                self._channel.post(f"{commit.n}/{self._rank}", self._copy(commit, file).encode())
            if self._claim is not None:
                failure = self._conclude(self._claim, commit)
                seconds = time.perf_counter() - started
                self.results.append(Upload(commit=commit, seconds=seconds, failure=failure))
        finally:
            if self._commit is commit:
                self._commit = None

    def _copy(self, commit: Commit, file: File | None) -> str:
        """Why the file is not in the store; empty when it is, and is right there."""
        if file is None:
            return ""
        try:
            self._writer.copy(self._copies, self._store, commit.folder, file, self._deadline_seconds)
            self._writer.verify(self._store, commit.folder, file, self._deadline_seconds)
        except CheckpointError as error:
            return one_line(f"rank {self._rank}: {error}")
        return ""

    def _conclude(self, claim: Claim, commit: Commit) -> str:
        """Why the commit is not in the store; empty when it is, and the log says so."""
        try:
            said = self._channel.collect(f"{commit.n}", range(self._world_size), self._deadline_seconds)
            failures = [reason.decode() for reason in said if reason]
            if not failures:
                claim.stored(commit.n)
            return "".join(failures[:1])
        except CheckpointError as error:
            return one_line(str(error))
