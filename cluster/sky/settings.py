"""What a job asks of SkyPilot beyond ranks: the settings `sky.*`, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster import settings
from cluster.errors import ClusterError
from cluster.sky.catalogue import CLOUDS, check_accelerator, check_region

_ACCELERATOR = re.compile(r"[A-Za-z0-9-]+")
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
_AT_LEAST = re.compile(r"[1-9]\d*\+?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[~A-Za-z0-9_.+@=/-]+")
STRATEGIES = ("EAGER_NEXT_REGION", "FAILOVER")


@dataclass(frozen=True, slots=True, kw_only=True)
class SkySettings:
    """None leaves the choice to SkyPilot, which takes the cheapest that it can get.

    accelerators: of which kind a rank gets one; None gives CPU ranks.
    use_spot: machines that may be taken away. strategy: where it looks for others then.
    cpus, memory: cores and GB of the machine, or at least that many with a +. disk: GB.
    python: an interpreter that has the launcher's packages, in the image for instance; None means that they are
    installed, in the versions that they have here. setup: lines of shell before that.
    secrets: variables of this machine that the job gets, by name.
    """

    accelerators: str | None = None
    cloud: str | None = None
    region: str | None = None
    use_spot: bool = True
    strategy: str = "EAGER_NEXT_REGION"
    cpus: str | None = None
    memory: str | None = None
    disk: int | None = None
    image: str | None = None
    python: str | None = None
    setup: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accelerators is not None:
            check_accelerator(self.accelerators)
        if self.region is not None and self.cloud is None:
            raise ClusterError(f"sky.region={self.region!r} needs its cloud; give sky.cloud: {', '.join(CLOUDS)}")
        if self.region is not None and self.cloud is not None:
            check_region(self.cloud, self.region)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> SkySettings:
        return settings.read(cls, "sky", values, _READERS)


def _secrets(key: str, value: object) -> tuple[str, ...]:
    names = settings.lines(key, value)
    for number, name in enumerate(names, 1):
        if not _VARIABLE.fullmatch(name):  # it may be a secret: it is not shown
            raise ClusterError(f"{key}: entry {number} is no name of a variable; give names, SkyPilot takes the values")
    return names


_READERS: Mapping[str, settings.Reader] = {
    "accelerators": settings.matching(_ACCELERATOR, "must be a name such as H100; --gpus says how many"),
    "cloud": settings.one_of(CLOUDS),
    "region": settings.matching(_WORD, "must be the name of a region"),
    "use_spot": settings.truth,
    "strategy": settings.one_of(STRATEGIES),
    "cpus": settings.matching(_AT_LEAST, "must be a number of cores, or one with a + for at least"),
    "memory": settings.matching(_AT_LEAST, "must be a number of GB, or one with a + for at least"),
    "disk": settings.number(10, 100_000),
    "image": settings.matching(_IMAGE, "must be docker:IMAGE or the name of a machine image"),
    "python": settings.matching(_PATH, "must be a path of letters, digits and ~_.+@=/-"),
    "setup": settings.lines,
    "secrets": _secrets,
}
