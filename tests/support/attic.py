"""A log with two commits on a disk, that starting runs restore from again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.errors import CheckpointError, NoIntactCheckpoint
from checkpoints.log import CommitLog
from checkpoints.owner import this_process
from checkpoints.posix_store import PosixStore
from checkpoints.restorer import Restored, restore
from checkpoints.saver import Saver

SECONDS = 600.0
TENSORS = 8
STEPS = (10, 20)
State = dict[str, torch.Tensor]
T = TypeVar("T")


def state_of(step: int, megabytes: int) -> State:
    """Random numbers of that size: weights and optimizer state, whose every bit pattern is a number."""
    generator = torch.Generator().manual_seed(step)
    items = megabytes * 2**20 // 4 // TENSORS
    return {
        f"{part}.{i}": torch.randint(-(2**31), 2**31, (items,), dtype=torch.int32, generator=generator)
        for i in range(TENSORS // 2)
        for part in ("model", "optimizer")
    }


def on_each_rank(ranks: int, function: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(function, range(ranks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attic:
    """`right` is the state of the commit before the newest one, `targets` what each rank restores into."""

    root: Path
    before: Commit
    newest: Commit
    right: State
    targets: tuple[State, ...]

    @classmethod
    def make(cls, root: Path, megabytes: int, ranks: int) -> Attic:
        store, board = PosixStore(root), HashStore()
        claim = CommitLog(store).claim(this_process("campaign"))
        savers = [
            Saver(
                store=store, channel=Channel(board, "save"), claim=None if rank else claim, rank=rank,
                world_size=ranks, keep=2, deadline_seconds=SECONDS,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        right = state_of(STEPS[0], megabytes)
        on_each_rank(ranks, lambda rank: savers[rank].prepare(right))
        for step in STEPS:
            state = right if step == STEPS[0] else state_of(step, megabytes)
            on_each_rank(ranks, lambda rank: savers[rank].save(step, state, {"step": step}))  # noqa: B023
            on_each_rank(ranks, lambda rank: savers[rank].wait(SECONDS))
        on_each_rank(ranks, lambda rank: savers[rank].close(SECONDS))
        before, newest = claim.state.live
        targets = tuple({name: torch.empty_like(value) for name, value in right.items()} for _ in range(ranks))
        return cls(root=root, before=before, newest=newest, right=right, targets=targets)

    @property
    def ranks(self) -> int:
        return len(self.targets)

    def shards(self, commit: Commit) -> list[Path]:
        return sorted((self.root / commit.folder).glob("rank-*.bin"))

    def manifest(self, commit: Commit) -> Path:
        return self.root / commit.manifest_key

    def entries(self) -> list[Path]:
        return sorted((self.root / "log").glob("0*.json"))

    def restore(self) -> tuple[Restored | None, str]:
        """What a starting run restores on all ranks, and the damage that it found in the log."""
        store, board = PosixStore(self.root), HashStore()
        claim = CommitLog(store).claim(this_process("campaign"))

        def one(rank: int) -> Restored | None:
            for value in self.targets[rank].values():
                value.fill_(7)  # what an earlier restore has left must not be taken for this one's
            return restore(
                store=store, channel=Channel(board, "restore"), claim=None if rank else claim, rank=rank,
                world_size=self.ranks, state=self.targets[rank], deadline_seconds=SECONDS,
            )  # fmt: skip

        damage = json.dumps(claim.state.body["damaged"])
        return on_each_rank(self.ranks, one)[0], "" if damage == "[]" else damage

    def misses_damage(self) -> str:
        """What is wrong with how a starting run takes damage of the newest commit; empty when it is right.

        Right is: the commit before it, bit for bit on each rank, and the damage named.
        """
        try:
            restored, damage = self.restore()
        except CheckpointError as error:
            return f"the run cannot start: {error}"
        if restored is None:
            return "started from scratch"
        if restored.commit.n != self.before.n:
            return f"restored commit {restored.commit.n}"
        if not damage and self.newest.n not in restored.skipped:
            return "went back without a word"
        is_right = on_each_rank(self.ranks, self._is_right)
        return "" if all(is_right) else "restored wrong numbers"

    def misses_damage_of_all(self) -> str:
        """The same when no commit is whole: the run must be refused, with a reason for each."""
        try:
            restored, _ = self.restore()
        except NoIntactCheckpoint as error:
            return "" if len(error.skipped) == 2 else f"only one was looked at: {error}"
        except CheckpointError as error:
            return f"the run cannot start: {error}"
        return "started from scratch" if restored is None else f"restored commit {restored.commit.n}"

    def _is_right(self, rank: int) -> bool:
        return all(torch.equal(self.targets[rank][name], value) for name, value in self.right.items())
