"""What is asked of a backend, as data."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.errors import ClusterError
from cluster.topology import Topology

FINAL_CODES = (1, 2, 4, 93)  # a node process that ends with one of them has failed, and is not started again

_LONGEST_NAME = 36


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
    Of a job whose run folder is not seen from here: ended_as: SUCCEEDED, FAILED or CANCELLED. rented_seconds, cloud:
    how long it has had machines, and whose they are, as far as the place says.
    """

    state: JobState
    reason: str = ""
    was_taken: bool = False
    starts_again: int = 0  # how often the place has started the job again
    ended_as: str = ""
    rented_seconds: float | None = None
    cloud: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Run `command` once on each node, in `folder`, where its modules are found first, with `environment` added.

    entry, run_folder: the same for a place that is sent a function: `module:name`, and its only argument.
    resume: the same for a place that is sent the run: the words of `launch` there, all but the run folder.
    attempt: its number, from 1. checkpoints: where they are, a URL or a path.
    grace_seconds: what a person counts on between a stop signal and the end by force; None for no say.
    """

    name: str
    attempt: int
    command: tuple[str, ...]
    entry: str
    run_folder: Path
    folder: Path
    logs: Path  # the folder for what the node processes print, as node-N.log
    environment: dict[str, str]
    topology: Topology
    checkpoints: str
    resume: tuple[str, ...]
    grace_seconds: int | None

    @property
    def label(self) -> str:
        """Up to 45 lower-case letters, digits and '-', the same for the same attempt of the same run."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower())[:_LONGEST_NAME].strip("-") or "run"
        return f"{slug if slug[0].isalpha() else f'run-{slug}'}-{self.attempt}"

    def whole_environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self.folder), self.environment.get("PYTHONPATH"))))
        return {**self.environment, "PYTHONPATH": path}

    def environment_elsewhere(self) -> dict[str, str]:
        """Where nothing of this machine's own folders is seen."""
        return {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A file that is written to `path`, kept there, and sent by `command`."""

    path: Path
    text: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return f"# {self.path}\n{self.text}# is sent by\n{shlex.join(self.command)}"

    def write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(self.text)


def send_all(
    requests: Iterable[Request], send: Callable[[Request], str], take_back: Callable[[str], None]
) -> list[str]:
    """The handle that `send` gives for each request. When one is refused, those that were sent are taken back."""
    handles: list[str] = []
    try:
        for request in requests:
            request.write()
            handles.append(send(request))
    except ClusterError:
        for handle in handles:
            take_back(handle)
        raise
    return handles


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Exactly what a backend will execute: printable, comparable, sent as it is.

    script: of a batch job. payloads: for each job, the function that is called on its nodes, and the argument.
    requests: for each job, what is sent to a place that takes a description of it; then there is no other command.
    warnings: what it does otherwise than it was asked. unchecked: what only the place can tell.
    """

    command: tuple[str, ...]
    folder: Path
    log: Path
    environment: dict[str, str]
    script: str = ""
    payloads: tuple[tuple[str, str], ...] = ()
    requests: tuple[Request, ...] = ()
    warnings: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.requests:
            return "\n".join(map(str, self.requests))
        if self.payloads:
            calls = "".join(f"\n# {function}({argument!r})" for function, argument in self.payloads)
            return f"{self.script}\n# what is called on each node{calls}"
        words = [f"{name}={value}" for name, value in sorted(self.environment.items())]
        return f"cd {shlex.quote(str(self.folder))}\n{shlex.join(['env', *words, *self.command])}"
