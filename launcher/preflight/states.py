"""What a trace of the passes is added to: what a rank keeps of any model's state, by the numbers of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.preflight.stage3 import Stage3

_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of a model. trainable, all: numbers of parameters. frozen: bytes of the others.

    largest: numbers of the largest block, or parameter outside the blocks. saved: bytes that 4-bit weights take less
    than those of a trace, which has them in the precision of the layers.
    """

    trainable: float
    all: float
    frozen: float
    largest: float
    saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of one rank. name: of what is `beside`.

    beside: on the device during the passes, and in no trace. counted_too_much: in a trace. step: in the optimizer's
    step, all in all. host: on the host.
    """

    name: str
    beside: float
    counted_too_much: float
    step: float
    host: float


def _replicated(weights: Weights, _ranks: int, offloads: bool) -> States:
    return _fully_sharded(weights, 1, offloads)


def _fully_sharded(weights: Weights, ranks: int, offloads: bool) -> States:
    """Weights and gradients are in the trace; AdamW on a device makes one copy more of what it updates."""
    trainable, frozen = _FP32 * weights.trainable / ranks, weights.frozen / ranks
    if offloads:
        return States(name="", beside=0, counted_too_much=0, step=0, host=4 * trainable + frozen)
    return States(
        name="moments of AdamW",
        beside=2 * trainable,
        counted_too_much=weights.saved / ranks,
        step=5 * trainable + frozen,
        host=0,
    )


def _zero3(weights: Weights, ranks: int, offloads: bool) -> States:
    stage = Stage3(
        trainable=weights.trainable,
        all=weights.all,
        frozen=weights.frozen,
        largest=weights.largest,
        bytes_each=(_FP32 * weights.trainable + weights.frozen + weights.saved) / weights.all,
        ranks=ranks,
        offloads=offloads,
    )
    kept = stage.parameters + stage.frozen_part + stage.optimizer + stage.gradients + stage.bucket
    return States(
        name="partitions, gathered parameters and bucket of DeepSpeed",
        beside=kept + stage.gathered,
        counted_too_much=0,
        step=kept + stage.step_copies,
        host=stage.host,
    )


# Of weights on so many ranks that share them, with and without offload.
STATES: Mapping[str, Callable[[Weights, int, bool], States]] = {
    "ddp": _replicated,
    "fsdp": _fully_sharded,
    "zero3": _zero3,
}
