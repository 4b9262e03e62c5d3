"""What a job asks of Kubernetes beyond nodes and ranks: the settings `kubernetes.*`, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cluster import settings
from cluster.errors import ClusterError

_LABEL = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
_PATH = re.compile(r"/[A-Za-z0-9_.+@=/-]*")
_PROGRAM = re.compile(r"[A-Za-z0-9_.+@=/-]+")
_CONTEXT = re.compile(r"[A-Za-z0-9_.:@/-]+")
_RESOURCE = re.compile(r"[a-z0-9.-]+/[A-Za-z0-9_.-]+|none")
_MEMORY = re.compile(r"[1-9]\d*(Mi|Gi|Ti|M|G|T)")
_USER = re.compile(r"\d+(:\d+)?")
_SELECTOR = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9_.-]+=[A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """How spot nodes of a cloud are asked for. notice: the key of SPOT_NOTICE_SECONDS that a pod on one gets."""

    cloud: str
    spot: Mapping[str, str]
    tolerates: str  # the taint of spot nodes; empty for none
    notice: str


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        "gke": Provider(
            cloud="gcp",
            spot={"cloud.google.com/gke-spot": "true"},
            tolerates="cloud.google.com/gke-spot",
            notice="GKE spot",
        ),
        "eks": Provider(cloud="aws", spot={"eks.amazonaws.com/capacityType": "SPOT"}, tolerates="", notice="AWS spot"),
        "karpenter": Provider(
            cloud="aws", spot={"karpenter.sh/capacity-type": "spot"}, tolerates="", notice="AWS spot"
        ),
        "aks": Provider(
            cloud="azure",
            spot={"kubernetes.azure.com/scalesetpriority": "spot"},
            tolerates="kubernetes.azure.com/scalesetpriority",
            notice="Azure spot",
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """image and volume must be given to render a job; None elsewhere leaves the choice to the cluster.

    volume, mount: a claim that many nodes can write, and the path at which pods, and this machine, have it.
    python: the interpreter in the image. user: UID or UID:GID; None means the image's.
    gpus: the resource that one rank gets one of; `none` gives CPU ranks.
    cpus_per_rank: cores; None means 1 for a CPU rank and 4 for a GPU. memory: per node, as `200Gi`.
    spot, provider: whether nodes may be taken away, and whose they are, which says how to ask for such nodes.
    queue: of Kueue. secrets: Secrets whose keys become variables, by name.
    context: of the kubeconfig; None means its current one.
    """

    image: str | None = None
    volume: str | None = None
    mount: str = "/shared"
    python: str = "python3"
    user: str | None = None
    namespace: str = "default"
    context: str | None = None
    queue: str | None = None
    gpus: str = "nvidia.com/gpu"
    cpus_per_rank: int | None = None
    memory: str | None = None
    spot: bool = False
    provider: str | None = None
    node_selector: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    service_account: str | None = None

    def __post_init__(self) -> None:
        if self.spot and self.provider is None:
            known = ", ".join(PROVIDERS)
            raise ClusterError(
                f"kubernetes.spot=true needs kubernetes.provider, which says what spot nodes are: {known}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> KubernetesSettings:
        return settings.read(cls, "kubernetes", values, _READERS)


def _each(pattern: re.Pattern[str], remedy: str) -> Callable[[str, object], tuple[str, ...]]:
    def read(key: str, value: object) -> tuple[str, ...]:
        lines = settings.lines(key, value)
        for line in lines:
            if not pattern.fullmatch(line):
                raise ClusterError(f"{key}={line!r} {remedy}; use a list for several")
        return lines

    return read


_NAME = "must be a name of lower-case letters, digits, '-' and '.', up to 63"

_READERS: Mapping[str, settings.Reader] = {
    **dict.fromkeys(("volume", "namespace", "queue", "service_account"), settings.matching(_LABEL, _NAME)),
    "image": settings.matching(_IMAGE, "must be the name of an image, of letters, digits and _.:/@-"),
    "mount": settings.matching(_PATH, "must be an absolute path of letters, digits and _.+@=/-"),
    "python": settings.matching(_PROGRAM, "must be a path of letters, digits and _.+@=/-"),
    "user": settings.matching(_USER, "must be UID or UID:GID, in numbers"),
    "context": settings.matching(_CONTEXT, "must be the name of a context, of letters, digits and _.:@/-"),
    "gpus": settings.matching(_RESOURCE, "must be a resource such as nvidia.com/gpu, or none for CPU ranks"),
    "cpus_per_rank": settings.number(1, 1024),
    "memory": settings.matching(
        _MEMORY, "is not an amount of memory per node; use a number with Mi, Gi, Ti, M, G or T"
    ),
    "spot": settings.truth,
    "provider": settings.one_of(tuple(PROVIDERS)),
    "node_selector": _each(_SELECTOR, "must be LABEL=VALUE"),
    "secrets": _each(_LABEL, _NAME),
}
