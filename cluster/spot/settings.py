"""How `local_spot` takes machines away: the settings `local_spot.*`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cluster.errors import ClusterError
from cluster.spot.interruptions import Interruption, drawn, read_trace

_MOST = 1_000_000
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
        """Values as a person writes them, or as `dataclasses.asdict` gives them. Raises ClusterError."""
        given = {key: value for key, value in values.items() if value is not None}
        known = [field.name for field in fields(cls)]
        if unknown := [key for key in given if key not in known]:
            raise ClusterError(f"unknown setting local_spot.{unknown[0]}; there are: {', '.join(known)}")
        if "trace" in given and len(given) > 1:
            raise ClusterError("--spot-trace says when machines go, and so does --spot-seed; give one of them")
        if "trace" in given:
            settings = cls(trace=str(Path(str(given["trace"])).absolute()))
            settings.interruptions()
            return settings
        if not given:
            return cls()
        return cls(
            seed=_whole("seed", given.get("seed", 0), 0),
            mean_seconds=_whole("mean_seconds", given.get("mean_seconds", _USUAL_MEAN_SECONDS), 1),
        )

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


def _whole(key: str, value: object, least: int) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= _MOST:
        raise ClusterError(f"local_spot.{key}={text!r} is not a whole number from {least} to {_MOST}")
    return int(text)
