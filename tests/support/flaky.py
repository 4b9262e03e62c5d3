"""Runs whose bucket lies behind a network that loses requests, and what must be true of them whatever it loses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from support.saving import owner
from torch.distributed import HashStore

from checkpoints import object_store
from checkpoints.channel import Channel
from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.object_store import ObjectStore
from checkpoints.reader import verify
from checkpoints.restorer import restore
from checkpoints.saver import Saver
from checkpoints.store import Created

FAULTS = ("503", "drop", "hang", "reply", "cut")
SAVES_OF_AN_ATTEMPT = 4
SAVE_SECONDS = 120.0


@dataclass
class Tally:
    """What happened in all runs. `longest` has for each operation the seconds that it took, and those it may take."""

    saves: int = 0
    commits: int = 0
    restores: int = 0
    aborts: list[str] = field(default_factory=list)
    longest: dict[str, tuple[float, float]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def took(self, operation: str, seconds: float, deadline: float) -> None:
        with self._lock:
            if seconds > self.longest.get(operation, (0.0, 0.0))[0]:
                self.longest[operation] = (seconds, deadline)
            if seconds > deadline:
                self.troubles.append(f"{operation} took {seconds:.1f} s, and may take {deadline:.1f} s")


class HurriedStore(ObjectStore):
    """Gives up on a request soon, and times each operation. It writes in this process, so that this holds there, too.

    The deadline of an operation is that of the requests that it makes one after the other.
    """

    crosses_processes = False

    def __init__(self, url: str, tally: Tally, request_seconds: float) -> None:
        self._tally = tally
        self._deadline = 11 * request_seconds
        with mock.patch.multiple(object_store, REQUEST_SECONDS=request_seconds, RETRY_SECONDS=10 * request_seconds):
            super().__init__(url)

    def create(self, key: str, data: bytes) -> Created:
        with self._timed("create", 1):
            return super().create(key, data)

    def put(self, key: str, blocks: Iterable[memoryview]) -> None:
        with self._timed("put", 3):
            super().put(key, blocks)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._timed("get", 2):
            return super().get(key, start, length)

    def read_back(self, key: str, part_bytes: int) -> Iterator[memoryview]:
        parts = super().read_back(key, part_bytes)
        while True:
            with self._timed("read a part back", 2):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def list(self, prefix: str) -> dict[str, int]:
        with self._timed("list", 1):
            return super().list(prefix)

    def delete(self, key: str) -> None:
        with self._timed("delete", 1):
            super().delete(key)

    @contextmanager
    def _timed(self, operation: str, requests: int) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._tally.took(operation, time.monotonic() - started, requests * self._deadline)


def state_of(step: int, items: int) -> dict[str, torch.Tensor]:
    """A state whose every number tells its step."""
    return {"weight": torch.full((items,), float(step)), "moment": torch.full((items,), -float(step))}


@dataclass
class Run:
    """One attempt after the other in one bucket: restore, check what was restored, save some steps."""

    store: HurriedStore
    tally: Tally
    items: int
    step: int = 0
    told: int = 0  # the step of the newest commit that was told of

    def go_on(self, is_over: Callable[[], bool]) -> None:
        """Attempts until `is_over`; then everything that is live must be intact."""
        try:
            while not is_over():
                self._attempt()
            entry = CommitLog(self.store, SAVE_SECONDS).read()
            for commit in entry.live if entry else ():
                verify(self.store, commit)
        except CheckpointError as error:
            self.tally.troubles.append(f"{self.store.url} at step {self.step}: {type(error).__name__}: {error}")

    def _attempt(self) -> None:
        claim = CommitLog(self.store, SAVE_SECONDS).claim(owner())
        channel, state = Channel(HashStore(), "attempt"), state_of(-1, self.items)
        restored = restore(store=self.store, channel=channel, claim=claim, rank=0, world_size=1, state=state)
        self._check(restored.commit.step if restored else 0, state)
        saver = Saver(
            store=self.store, channel=channel, claim=claim, rank=0, world_size=1, keep=2, deadline_seconds=SAVE_SECONDS
        )
        saver.prepare(state)
        for _ in range(SAVES_OF_AN_ATTEMPT):
            self.step += 1
            self.tally.add("saves")
            saver.save(self.step, state_of(self.step, self.items), {"step": self.step})
            (result,) = saver.wait(SAVE_SECONDS)
            if result.commit is not None:
                self.tally.add("commits")
                self.told = self.step
            if result.abort is not None:
                self.tally.aborts.append(f"step {self.step}: {result.abort}")
            self.tally.troubles += result.damage
        saver.close(SAVE_SECONDS)

    def _check(self, step: int, state: dict[str, torch.Tensor]) -> None:
        """Nothing that was told of is lost; a commit whose outcome was not known may be there."""
        self.tally.add("restores")
        if not self.told <= step <= self.step:
            self.tally.troubles.append(f"{self.store.url}: restored step {step}; step {self.told} was told of")
        wrong = [
            name for name, value in state_of(step or -1, self.items).items() if not torch.equal(state[name], value)
        ]
        if wrong:
            self.tally.troubles.append(f"{self.store.url}: wrong load of step {step}: {wrong}")
