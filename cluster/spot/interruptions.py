"""When machines are taken away: drawn from a seed, or read from a trace."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

_LONGEST_SECONDS = 1e6
_MOST_NODES = 1_000_000
_NOTICES_SECONDS = (0.0, 5.0, 120.0)  # without one; one that is missed as often as not; that of EC2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """`nodes` are taken so long after the job was given its machines.

    notice_seconds: they say so that long before; 0 is without notice. gone_seconds: for so long from then on there are
    too few machines for the job.
    """

    after_seconds: float
    nodes: tuple[int, ...]
    notice_seconds: float
    gone_seconds: float

    @classmethod
    def from_json(cls, value: object) -> Interruption:
        """An object with these fields; others are passed over. Raises ValueError for anything else."""
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        nodes = value.get("nodes")
        if not isinstance(nodes, list) or not nodes or not all(type(n) is int and 0 <= n < _MOST_NODES for n in nodes):
            raise ValueError(f"nodes={json.dumps(nodes)} is not a list of nodes; give their numbers, from 0 on")
        seconds = {field.name: _seconds(field.name, value) for field in fields(cls) if field.name != "nodes"}
        return cls(nodes=tuple(nodes), **seconds)

    def __str__(self) -> str:
        nodes = f"node{'s' if len(self.nodes) > 1 else ''} {' and '.join(map(str, self.nodes))}"
        notice = f"with a notice of {self.notice_seconds:g} s" if self.notice_seconds else "without notice"
        return f"{nodes} taken away {notice}"


def _seconds(name: str, value: Mapping[str, object]) -> float:
    seconds = value.get(name)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_SECONDS:
        raise ValueError(f"{name}={json.dumps(seconds)} is not a number of seconds from 0 to {_LONGEST_SECONDS:.0f}")
    return float(seconds)


def drawn(seed: int, mean_seconds: float, number: int, nodes: int) -> Interruption:
    """Interruption `number` (from 0 on) of a job: after an exponential time, as where machines are lost at random."""
    order = random.Random(f"{seed}-{number}")
    taken = range(nodes) if order.random() < 0.25 else [order.randrange(nodes)]
    return Interruption(
        after_seconds=round(-math.log(1 - order.random()) * mean_seconds, 3),
        nodes=tuple(taken),
        notice_seconds=order.choice(_NOTICES_SECONDS),
        gone_seconds=round(order.random() * mean_seconds / 2, 3),
    )


def read_trace(path: Path) -> tuple[Interruption, ...]:
    """One interruption per line, as JSON. Raises OSError, and ValueError that names line and field."""
    if path.exists() and not path.is_file():  # such as a FIFO, which would block us for ever
        raise ValueError("it is not a regular file")
    return tuple(_parsed(path))


def _parsed(path: Path) -> Iterator[Interruption]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            yield Interruption.from_json(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error


@dataclass(frozen=True, slots=True)
class Record:
    """The interruptions of a run so far, in a file of the run; a line of it is a line of a trace, too.

    A line that is torn, or is none, is passed over.
    """

    path: Path

    def add(self, interruption: Interruption, now: float) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(interruption), "time": round(now, 3)}) + "\n")

    def count(self) -> int:
        return len(self._read())

    def last(self) -> Interruption:
        return self._read()[-1][0]

    def capacity_in_seconds(self, now: float) -> float:
        """Until there are enough machines again; 0 or less when there are."""
        told = self._read()
        return told[-1][1] + told[-1][0].gone_seconds - now if told else 0.0

    def _read(self) -> list[tuple[Interruption, float]]:
        """Each with its time."""
        told = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else ():
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                told.append((Interruption.from_json(value), _time(value)))
        return told


def _time(value: Mapping[str, object]) -> float:
    time = value.get("time")
    if not isinstance(time, float) or not math.isfinite(time):
        raise ValueError("it has no time")
    return time
