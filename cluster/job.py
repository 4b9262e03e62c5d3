"""What is asked of a backend, as data."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.topology import Topology


class JobState(StrEnum):
    """Of a job that a scheduler starts again by itself: it is pending once more, and has not ended."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    ENDED = "ENDED"
    UNKNOWN = "UNKNOWN"  # the place does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A job as its place sees it. `reason`: why it is so, in the place's own words; empty where there are none.

    was_taken: it has ended because the place has taken machines away.
    """

    state: JobState
    reason: str = ""
    was_taken: bool = False
    starts_again: int = 0  # how often the place has started the job again


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Run `command` once on each node, in `folder`, where its modules are found first, with `environment` added.

    entry, run_folder: the same for a place that is sent a function: `module:name`, and its only argument.
    """

    name: str
    command: tuple[str, ...]
    entry: str
    run_folder: Path
    folder: Path
    logs: Path  # the folder for what the node processes print, as node-N.log
    environment: dict[str, str]
    topology: Topology

    def whole_environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self.folder), self.environment.get("PYTHONPATH"))))
        return {**self.environment, "PYTHONPATH": path}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Exactly what a backend will execute: printable, comparable, sent as it is.

    script: of a batch job. payloads: for each job, the function that is called on its nodes, and the argument.
    """

    command: tuple[str, ...]
    folder: Path
    log: Path
    environment: dict[str, str]
    script: str = ""
    payloads: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.payloads:
            calls = "".join(f"\n# {function}({argument!r})" for function, argument in self.payloads)
            return f"{self.script}\n# what is called on each node{calls}"
        words = [f"{name}={value}" for name, value in sorted(self.environment.items())]
        return f"cd {shlex.quote(str(self.folder))}\n{shlex.join(['env', *words, *self.command])}"
