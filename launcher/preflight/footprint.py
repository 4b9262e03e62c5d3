"""The memory that one rank needs, at the moment of a step when it needs most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from launcher.preflight.activations import Activations, activations
from launcher.preflight.spread import SPREADS, HostMemory, Spread
from launcher.preflight.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes on the device of one rank, by what they are for."""

    parameters: float
    base: float
    gradients: float
    optimizer: float
    activations: float
    communication: float
    workspace: float

    @property
    def total(self) -> float:
        return (
            self.parameters + self.base + self.gradients + self.optimizer
            + self.activations + self.communication + self.workspace
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """parts: at the worst `moment`. host: of one node."""

    moment: str
    parts: Parts
    host: HostMemory

    @property
    def margin(self) -> float:
        """Bytes that PyTorch's allocator does not count, or cannot use: see MARGIN."""
        return MARGIN_BYTES + MARGIN_SHARE * self.parts.total

    @property
    def total(self) -> float:
        return self.parts.total + self.margin

    def as_json(self) -> dict[str, object]:
        parts = {name: round(getattr(self.parts, name)) for name in Parts.__slots__}
        return {
            "moment": self.moment,
            **parts,
            "allocated": round(self.parts.total),
            "margin": round(self.margin),
            "total": round(self.total),
        }


# A CUDA context, the code of kernels and the buffers of NCCL; and the holes between blocks of the caching allocator.
MARGIN_BYTES = 1.0 * 2**30
MARGIN_SHARE = 0.05
MARGIN = "margin: 1 GiB for the CUDA context, kernels and NCCL, and 5 % for holes of the allocator; not measured"


def footprint(work: Workload) -> Footprint:
    spread = SPREADS[work.strategy](work)
    moments = dict(_moments(work, spread, activations(work)))
    worst = max(moments, key=lambda moment: moments[moment].total)
    return Footprint(moment=worst, parts=moments[worst], host=spread.host)


def moments(work: Workload) -> Mapping[str, Parts]:
    """What is on the device at each moment of a step at which it may be most."""
    return dict(_moments(work, SPREADS[work.strategy](work), activations(work)))


def _moments(work: Workload, spread: Spread, kept: Activations) -> Iterator[tuple[str, Parts]]:
    blocks = work.shape.layers
    always = Parts(
        parameters=spread.parameters,
        base=spread.base,
        gradients=spread.gradients_before,
        optimizer=spread.optimizer,
        activations=0,
        communication=spread.gathered_loss,
        workspace=0,
    )
    saved_copies = spread.weight_copies if work.keeps_activations else spread.head_copy
    all_kept = blocks * kept.kept + kept.head
    yield "the loss", replace(always, activations=all_kept, workspace=spread.cached_copies + kept.loss_forward)
    yield (
        "the gradient of the loss",
        replace(always, activations=all_kept, workspace=saved_copies + kept.loss_backward),
    )
    computing = 0 if work.keeps_activations else kept.block
    block_copies = spread.weight_copies / blocks
    backward = replace(
        always,
        communication=spread.gathered_backward,
        workspace=kept.block_workspace + (saved_copies if work.keeps_activations else block_copies),
    )
    yield (
        "the gradients of the last block",
        replace(
            backward,
            activations=blocks * kept.kept + computing,
            gradients=max(spread.gradients_before, spread.gradients_of_head),
        ),
    )
    yield (
        "the gradients of the first block",
        replace(
            backward,
            activations=kept.kept + computing,
            gradients=spread.gradients_late,
            workspace=kept.block_workspace + block_copies,
        ),
    )
    yield (
        "the end of the backward pass",
        replace(always, gradients=spread.gradients, communication=spread.gathered_end, workspace=spread.end_workspace),
    )
    yield (
        "the optimizer step",
        replace(always, gradients=spread.gradients, communication=0, workspace=spread.step_workspace),
    )
