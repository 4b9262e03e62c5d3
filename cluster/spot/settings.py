"""How `local_spot` takes machines away: the settings `local_spot.*`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import settings
from cluster.errors import ClusterError
from cluster.spot.interruptions import Interruption, drawn, read_trace

_USUAL_MEAN_SECONDS = 60
_EXAMPLE = '{"after_seconds": 20, "nodes": [0], "notice_seconds": 120, "gone_seconds": 10}'


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotSettings:
    """Without any of them no machine is taken away.

    seed, mean_seconds: at random times, that many seconds apart on average; one of them suffices. trace: as the file
    says, line by line.
    """

    seed: int | None = None
    mean_seconds: int | None = None
    trace: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> SpotSettings:
        found = settings.read(cls, "local_spot", values, _READERS)
        is_random = found.seed is not None or found.mean_seconds is not None
        if found.trace is not None and is_random:
            raise ClusterError("--spot-trace says when machines go, and so does --spot-seed; give one of them")
        found.interruptions()
        if not is_random:
            return found
        return replace(found, seed=found.seed or 0, mean_seconds=found.mean_seconds or _USUAL_MEAN_SECONDS)

    def interruptions(self) -> tuple[Interruption, ...]:
        """Those of the trace. Raises ClusterError."""
        if self.trace is None:
            return ()
        try:
            return read_trace(Path(self.trace))
        except OSError as error:
            raise ClusterError(
                f"--spot-trace {self.trace} cannot be read ({error.strerror}); give the file of a trace"
            ) from error
        except ValueError as error:
            raise ClusterError(f"--spot-trace {self.trace}: {error}; give lines such as {_EXAMPLE}") from error

    def interruption(self, number: int, nodes: int) -> Interruption | None:
        """The one after `number` others; None when there are no more."""
        if self.trace is not None:
            return next(iter(self.interruptions()[number:]), None)
        if self.seed is None or self.mean_seconds is None:
            return None
        return drawn(self.seed, self.mean_seconds, number, nodes)

    def check_nodes(self, nodes: int) -> None:
        """Raises ClusterError when the trace takes a machine that is not there."""
        for line, interruption in enumerate(self.interruptions(), 1):
            if max(interruption.nodes) >= nodes:
                raise ClusterError(
                    f"--spot-trace {self.trace}: line {line}: there is no node {max(interruption.nodes)} of {nodes}; "
                    f"use 0 to {nodes - 1}, or more --nodes"
                )

    def __str__(self) -> str:
        if self.trace is not None:
            return f"taken away as {self.trace} says"
        if self.seed is None:
            return "never taken away; give --spot-seed, --spot-mean-seconds or --spot-trace for that"
        return f"taken away about every {self.mean_seconds} s (seed {self.seed})"


def _trace(_key: str, value: object) -> str:
    return str(Path(str(value)).absolute())


_READERS: Mapping[str, settings.Reader] = {
    "seed": settings.number(0, 1_000_000),
    "mean_seconds": settings.number(1, 1_000_000),
    "trace": _trace,
}
