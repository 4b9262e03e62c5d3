"""What DeepSpeed's ZeRO stage 3 keeps on one rank, in bytes, as `launcher.train.engines.zero` configures it."""

from __future__ import annotations

from dataclasses import dataclass

_FP32 = 4
BUCKET_ITEMS = 50_000_000  # engines.zero sets it
_SUB_GROUP_ITEMS = 1_000_000_000  # DeepSpeed updates so many at a time
_LIVE_ITEMS = 500_000_000  # half of DeepSpeed's reuse distance: forward and backward count both
_PREFETCH_ITEMS = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage3:
    """trainable, all: numbers of parameters. frozen: bytes of the others, on all ranks together.

    largest: numbers of the largest layer. bytes_each: of a number that is gathered.
    """

    trainable: float
    all: float
    frozen: float
    largest: float
    bytes_each: float
    ranks: int
    offloads: bool

    @property
    def parameters(self) -> float:
        """Those that are updated, and those that others gather: an fp32 copy."""
        return 0 if self.offloads else 2 * self._share

    @property
    def frozen_part(self) -> float:
        return 0 if self.offloads else self.frozen / self.ranks

    @property
    def optimizer(self) -> float:
        return 0 if self.offloads else 2 * self._share

    @property
    def gradients(self) -> float:
        return 0 if self.offloads else self._share

    @property
    def bucket(self) -> float:
        """Of gradients that are to be reduced."""
        return _FP32 * min(self.trainable, BUCKET_ITEMS)

    @property
    def gathered(self) -> float:
        """It keeps what is used again soon, and prefetches; a rank that has all of it copies nothing."""
        if self.ranks == 1 and not self.offloads:
            return 0
        return self.bytes_each * min(self.all, _LIVE_ITEMS + self.largest + _PREFETCH_ITEMS)

    @property
    def step_copies(self) -> float:
        return 0 if self.offloads else 2 * _FP32 * min(self.trainable / self.ranks, _SUB_GROUP_ITEMS)

    @property
    def host(self) -> float:
        return 6 * self._share + self.frozen / self.ranks if self.offloads else 0

    @property
    def _share(self) -> float:
        return _FP32 * self.trainable / self.ranks
