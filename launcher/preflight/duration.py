"""How long a run takes: floating-point operations, steps, GPU-hours."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.preflight.gpus import Gpu
from launcher.preflight.workload import Workload

MFU = 0.40
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Of a whole run. flops: of one step. gpu_hours, seconds: of all steps, without saves and restarts."""

    flops: float
    mfu: float
    step_seconds: float
    seconds: float
    gpu_hours: float
    assumptions: tuple[str, ...]


def step_flops(work: Workload, samples: int) -> float:
    """Floating-point operations of one step over `samples` full samples, without those that are done again.

    Two per parameter and token in the forward pass; as many for the gradients of activations, and of weights that
    train. The embedding is looked up, not multiplied. Attention is causal: half of the products count.
    """
    shape, tokens = work.shape, samples * work.length
    matrices = shape.layers * shape.block_matrices + shape.embedding
    attention = shape.layers * 2 * work.length * shape.heads * shape.head_width
    if work.adapter is None:
        return tokens * (6 * matrices + 3 * attention)
    return tokens * (4 * matrices + 6 * work.trainable + 3 * attention)


def seconds_of(flops: float, *, gpus: int, peak: float, mfu: float) -> float:
    """How long `gpus` of `peak` operations per second take, of which the share `mfu` is used."""
    return flops / (gpus * peak * mfu)


def duration(work: Workload, gpu: Gpu, *, samples: int, steps: int, mfu: float | None) -> Duration | None:
    """None for a GPU of unknown speed."""
    if gpu.flops is None:
        return None
    flops = step_flops(work, samples)
    share, reason = (mfu, "as given") if mfu is not None else _usual_mfu(work)
    step = seconds_of(flops, gpus=work.ranks, peak=gpu.flops, mfu=share)
    trained = "6 per parameter" if work.adapter is None else "4 per frozen parameter, 6 per one that trains"
    return Duration(
        flops=flops,
        mfu=share,
        step_seconds=step,
        seconds=steps * step,
        gpu_hours=steps * step * work.ranks / _SECONDS_PER_HOUR,
        assumptions=(
            f"operations per token: {trained}, and causal attention; every sample has {work.length} tokens",
            f"a GPU does {share:.0%} of its peak of {gpu.flops / 1e12:g} TFLOP/s (MFU, {reason}); set it with --mfu",
        ),
    )


def _usual_mfu(work: Workload) -> tuple[float, str]:
    if work.keeps_activations:
        return MFU, "assumed"
    # The forward pass is done twice, and counts once.
    return MFU * (3 / 4 if work.adapter is None else 2 / 3), "assumed, less what activation checkpointing does again"
