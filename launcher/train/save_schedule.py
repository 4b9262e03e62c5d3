"""After which steps a checkpoint is saved. Rank 0 has a schedule; what it says travels with the votes of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from checkpoints.flat_shard import State
from cluster.topology import Topology
from launcher.preflight.interruptions import best_interval, failures
from launcher.preflight.saves import seconds_of_save
from launcher.recipe import Recipe

FIRST_SECONDS = 600


class SaveSchedule(Protocol):
    """Says when a save is due, and is told what steps and saves take."""

    def is_due(self, step: int, *, is_saving: bool) -> bool:
        """Whether to save after this step, which is about to be taken. is_saving: the save before it still runs."""
        ...

    def step_taken(self, seconds: float) -> None: ...

    def save_begun(self, blocked_seconds: float) -> None:
        """Training stood still for so long."""
        ...

    def save_ended(self, seconds: float) -> None:
        """A save was committed so long after it was begun."""
        ...

    def interval(self) -> tuple[float, int] | None:
        """Seconds, and about how many steps, between saves; None where the recipe says it, or it is not known yet."""
        ...


@dataclass(frozen=True, slots=True)
class EverySteps:
    """As the recipe says."""

    steps: int

    def is_due(self, step: int, *, is_saving: bool) -> bool:
        return step % self.steps == 0

    def step_taken(self, seconds: float) -> None: ...

    def save_begun(self, blocked_seconds: float) -> None: ...

    def save_ended(self, seconds: float) -> None: ...

    def interval(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class LeastLost:
    """As often as loses least (Young 1974, Daly 2006); but the first save of a start comes within minutes.

    That one measures what saves take, and bounds what is lost where failures are far more frequent than was thought.
    blocked_seconds, durable_seconds: what saves are thought to take until they are measured, as steps are.
    """

    failure_seconds: float
    blocked_seconds: float
    durable_seconds: float
    clock: Callable[[], float] = time.monotonic
    _step_seconds: float = 0.0
    _saves: int = 0
    _commits: int = 0
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    @property
    def interval_seconds(self) -> float:
        return best_interval(self.blocked_seconds, self.durable_seconds, self.failure_seconds)

    def is_due(self, step: int, *, is_saving: bool) -> bool:
        """At the end of the step that is nearest to the end of the interval."""
        interval = self.interval_seconds if self._saves else min(self.interval_seconds, FIRST_SECONDS)
        return not is_saving and self.clock() - self._since + self._step_seconds / 2 >= interval

    def step_taken(self, seconds: float) -> None:
        self._step_seconds = _mean(self._step_seconds, seconds, is_first=not self._step_seconds)

    def save_begun(self, blocked_seconds: float) -> None:
        self.blocked_seconds = _mean(self.blocked_seconds, blocked_seconds, is_first=not self._saves)
        self._saves += 1
        self._since = self.clock()

    def save_ended(self, seconds: float) -> None:
        self.durable_seconds = _mean(self.durable_seconds, seconds, is_first=self._commits == 0)
        self._commits += 1

    def interval(self) -> tuple[float, int] | None:
        if not self._step_seconds:
            return None
        return self.interval_seconds, max(1, round(self.interval_seconds / self._step_seconds))


def schedule_of(recipe: Recipe, topology: Topology, state: State, node_hours: float | None) -> SaveSchedule:
    """The one that the recipe asks for, for checkpoints of this state. node_hours: between interruptions of a node."""
    every = recipe.checkpoint.every
    if isinstance(every, int):
        return EverySteps(every)
    size = sum(value.size().numel() * value.dtype.itemsize for value in state.values())
    durable, blocked = seconds_of_save(size, topology.ranks)
    often = failures(nodes=topology.nodes, ranks=topology.ranks, node_hours=node_hours)
    return LeastLost(failure_seconds=often.seconds, blocked_seconds=blocked, durable_seconds=durable)


def _mean(before: float, now: float, *, is_first: bool) -> float:
    """Of what was measured lately; single values jump."""
    return now if is_first else 0.8 * before + 0.2 * now
