"""What a forward pass keeps for the backward pass, in bytes: read off the operations of a Llama block."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.preflight.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch.

    block: what one block keeps while its gradients are computed. kept: what it keeps until then.
    block_workspace: the gradients of its largest activations. head: of the last norm and the output layer.
    loss_forward, loss_backward: the logits and what the loss makes of them, at their peaks.
    """

    block: float
    kept: float
    block_workspace: float
    head: float
    loss_forward: float
    loss_backward: float


def activations(work: Workload) -> Activations:
    shape, tokens, compute = work.shape, work.tokens, work.compute_bytes
    width, residual = shape.width, work.residual_bytes
    attended = 2 * (shape.heads + shape.key_value_heads) * shape.head_width
    block = _norms(work) + _linear_inputs(work) + compute * attended + 4 * shape.heads
    block += 3 * compute * shape.feed_forward  # the gate, its SiLU, and what that is multiplied with
    gradients = 2 * compute + (4 if work.casts_adapters and "down_proj" in work.adapted else 0)
    logits = tokens * shape.vocabulary
    return Activations(
        block=tokens * block,
        kept=tokens * (block if work.keeps_activations else residual * width),
        block_workspace=tokens * (gradients * shape.feed_forward + (residual + compute) * width),
        head=tokens * (_norms(work) / 2 + compute * width),
        # The logits, in fp32 if they are not yet, and their logarithmic softmax.
        loss_forward=logits * (compute + (4 if compute < 4 else 0) + 4),
        # The logarithmic softmax, its gradient, and that of the logits.
        loss_backward=logits * 12,
    )


def _norms(work: Workload) -> float:
    """Two norms: each keeps its input in fp32, and what it multiplies with its weight if that trains."""
    return 2 * work.shape.width * (4 + (work.residual_bytes if work.adapter is None else 0))


def _linear_inputs(work: Workload) -> float:
    """The inputs of matrices whose weight, or adapter, trains.

    Matrices share the output of a norm, unless each of them converts it. The attention keeps the input of `o_proj`
    anyway, in the precision that the matrix wants.
    """
    width, feed_forward = work.shape.width, work.shape.feed_forward
    if work.adapter is None:
        copies = 5 if work.casts_weights else 2
        return work.compute_bytes * (copies * width + feed_forward)
    return work.compute_bytes * (_adapter_inputs(work) + work.adapter.rank * len(work.adapted))


def _adapter_inputs(work: Workload) -> int:
    if work.casts_adapters:
        return sum(inputs for inputs, _ in work.adapted.values())
    shared = [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}]
    inputs = sum(work.shape.width for group in shared if group & work.adapted.keys())
    return inputs + ("down_proj" in work.adapted) * work.shape.feed_forward
