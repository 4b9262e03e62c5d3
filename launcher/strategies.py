"""The parallel strategies by name: where each is implemented, and what cannot be asked of it.

A strategy is one line here, and one module under `launcher.train.engines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OFFLOAD = "parallel.cpu_offload=true"
HYBRID = "parallel.shard_within_node=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """implementation: `module:class` that implements `launcher.train.engines.strategy.Strategy`.

    shards: a rank holds its share of the model, takes it from one that was built on the CPU, and needs only the shapes
        of one whose values a checkpoint will bring.
    refuses: settings that it cannot be used with, and why; a key that holds several means all of them together.
    """

    implementation: str
    shards: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.implementation.partition(":")[0]

    def refusal(self, settings: set[str]) -> tuple[str, str] | None:
        """The first (settings, reason) that forbids these `KEY=VALUE` settings together."""
        return next((item for item in self.refuses.items() if settings.issuperset(item[0].split())), None)


_REPLICATES = "every rank keeps the whole model where it computes"

_ZERO_REFUSES = {HYBRID: "DeepSpeed shards over all ranks"}

STRATEGIES: Mapping[str, Strategy] = {
    "ddp": Strategy(
        implementation="launcher.train.engines.ddp:DataParallel",
        refuses={OFFLOAD: _REPLICATES, HYBRID: _REPLICATES},
    ),
    "fsdp": Strategy(implementation="launcher.train.engines.fsdp:FullySharded", shards=True),
    "zero1": Strategy(implementation="launcher.train.engines.zero:Zero", refuses=_ZERO_REFUSES),
    "zero2": Strategy(implementation="launcher.train.engines.zero:Zero", refuses=_ZERO_REFUSES),
    "zero3": Strategy(implementation="launcher.train.engines.zero:Zero", shards=True, refuses=_ZERO_REFUSES),
}


def alternatives(settings: set[str]) -> list[str]:
    """The names of the strategies that these settings can be used with."""
    return [name for name, strategy in STRATEGIES.items() if strategy.refusal(settings) is None]
