"""What is asked of a backend, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.topology import Topology


class JobState(StrEnum):
    RUNNING = "RUNNING"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt: run `command` once on each node, in `folder`, with `environment` added to the node's own."""

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path  # of the node process
    environment: dict[str, str]
    topology: Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Exactly what a backend will execute: printable, comparable, sent as it is."""

    command: tuple[str, ...]
    folder: Path
    log: Path
    environment: dict[str, str]
