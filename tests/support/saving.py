"""Short words for tests that save and restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import HashStore

from checkpoints.channel import Channel
from checkpoints.entry import Commit
from checkpoints.log import Claim, CommitLog
from checkpoints.owner import Owner, this_process
from checkpoints.restorer import Restored, restore
from checkpoints.saver import Saver, SaveResult
from checkpoints.store import Store

SECONDS = 60.0  # until something counts as stuck, on a busy machine


def owner(job: str = "this job") -> Owner:
    return this_process(job)


def claim(store: Store, log_seconds: float = 5) -> Claim:
    return CommitLog(store, log_seconds).claim(owner())


def live(store: Store) -> tuple[Commit, ...]:
    entry = CommitLog(store).read()
    return entry.live if entry else ()


def state_of(step: int) -> dict[str, torch.Tensor]:
    """A small state whose every number tells its step."""
    return {
        "model.weight": torch.full((40, 30), float(step)),
        "model.bias": torch.full((7,), step, dtype=torch.bfloat16),
        "model.empty": torch.empty(0, 3),
        "optimizer.weight.exp_avg": torch.full((40, 30), step + 0.5, dtype=torch.float64),
        "optimizer.weight.step": torch.tensor(step),
        "optimizer.mask": torch.tensor([True, False, step % 2 == 0]),
    }


def assert_state(state: Mapping[str, torch.Tensor], step: int) -> None:
    for name, value in state_of(step).items():
        assert torch.equal(state[name], value), f"{name} is not that of step {step}"


@dataclass
class Alone:
    """The only rank of an attempt, from its claim on."""

    store: Store
    claim: Claim
    saver: Saver
    restored: Restored | None
    state: dict[str, torch.Tensor]

    def save(self, step: int, *, to_store: bool = False) -> SaveResult:
        """Save the state of that step, and wait for the result."""
        self.saver.save(step, state_of(step), {"samples": step * 8}, to_store=to_store)
        (result,) = self.saver.wait(SECONDS)
        return result

    def close(self) -> None:
        self.saver.close(SECONDS)


def start(store: Store, keep: int = 2, log_seconds: float = 5, copies: Store | None = None) -> Alone:
    """Claim, restore, and be ready to save."""
    held = claim(store, log_seconds=log_seconds)
    channel = Channel(HashStore(), "attempt")
    state = state_of(-1)
    alone: dict[str, Any] = {
        "store": store, "channel": channel, "claim": held, "rank": 0, "world_size": 1, "copies": copies,
        "deadline_seconds": SECONDS,
    }  # fmt: skip
    restored = restore(**alone, state=state)
    saver = Saver(**alone, keep=keep)
    saver.prepare(state)
    return Alone(store, held, saver, restored, state)
