"""Runs on spot machines that this one plays, and how they are taken away."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from support.campaign import Disturbed
from support.runs_for_tests import json_lines

NODES = 2
BOTH = tuple(range(NODES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An interruption, but for its time: `after` and `gone` are the least and the most seconds of each."""

    name: str
    nodes: tuple[int, ...] | None  # None: one of them, whichever
    notice_seconds: float
    after: tuple[float, float] = (10, 18)
    gone: tuple[float, float] = (0, 4)

    def draw(self, choose: random.Random) -> dict[str, Any]:
        """A line of a trace."""
        return {
            "after_seconds": round(choose.uniform(*self.after), 2),
            "nodes": list(self.nodes or [choose.randrange(NODES)]),
            "notice_seconds": self.notice_seconds,
            "gone_seconds": round(choose.uniform(*self.gone), 2),
        }


@dataclass
class SpotRun(Disturbed):
    """A run of two nodes whose machines go as the trace says, and which nobody helps."""

    trace: Sequence[dict[str, Any]] = ()

    @cached_property
    def words(self) -> list[str]:
        self.course.folder.mkdir(exist_ok=True)
        trace = self.course.folder / f"{self.name}.trace"
        trace.write_text("".join(f"{json.dumps(line)}\n" for line in self.trace))
        place = ["--on", "spot", "--nodes", str(NODES), "--spot-trace", str(trace)]
        return [*self.course.words(self.ranks // NODES), *place, *self.flags, "--name", self.name]

    def interruptions(self) -> list[dict[str, Any]]:
        return json_lines(self.run / "spot/interruptions.jsonl")

    def attempt(self, number: int) -> Path:
        return self.run / f"attempts/{number:04d}"
