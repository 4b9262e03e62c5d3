"""What each strategy keeps on a device and on the host, in bytes, as `launcher.train.engines` implements it.

Parameters, gradients and both moments of AdamW are fp32. AdamW's loop over many tensors at once, the default on GPUs,
makes one more copy of the parameters it updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.preflight.stage3 import Stage3
from launcher.preflight.workload import Workload

_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes of one node. offload: state that stays there. staging: of checkpoints. loading: when a run starts."""

    offload: float
    staging: float
    loading: float

    @property
    def training(self) -> float:
        return self.offload + self.staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Bytes on one device.

    gradients_before: what is there during the first forward pass that is like all others. gradients_of_head: when the
    backward pass comes to the last block. gradients_late: when it comes to the first one. gradients: at its end.
    gathered_*: buffers of collectives while the loss, and a block's gradients, are computed, and at the end.
    weight_copies: of the blocks, in the precision of the layers, which the backward pass needs; head_copy: of the
    output layer. cached_copies: those that autocast keeps as long as a forward pass takes.
    """

    parameters: float
    base: float
    optimizer: float
    gradients_before: float
    gradients_of_head: float
    gradients_late: float
    gradients: float
    gathered_loss: float
    gathered_backward: float
    gathered_end: float
    weight_copies: float
    head_copy: float
    cached_copies: float
    end_workspace: float
    step_workspace: float
    host: HostMemory


def _replicated(work: Workload) -> Spread:
    """DistributedDataParallel: with several ranks its buckets hold all gradients, all the time."""
    trainable = work.trainable
    gradients = _FP32 * trainable
    stays = work.ranks > 1 or work.passes > 1
    return Spread(
        parameters=_FP32 * trainable,
        base=work.base_block_bytes * work.shape.layers + work.base_root_bytes + work.base_scale_bytes,
        optimizer=2 * _FP32 * trainable,
        gradients_before=gradients if stays else 0,
        gradients_of_head=_head_gradient(work),
        gradients_late=gradients if stays else gradients - _last_gradients(work),
        gradients=gradients,
        gathered_loss=0,
        gathered_backward=0,
        gathered_end=0,
        weight_copies=_weight_copies(work),
        head_copy=_head_copy(work),
        cached_copies=_weight_copies(work) + _head_copy(work),
        end_workspace=_last_gradient(work),
        step_workspace=_FP32 * trainable,
        host=HostMemory(offload=0, staging=_staging(work), loading=_loading_whole(work)),
    )


def _fully_sharded(work: Workload) -> Spread:
    """FSDP2: a block is gathered while it computes, and the next one meanwhile; embedding and output layer stay."""
    shards, shape = work.shard_ranks, work.shape
    trainable = _FP32 * work.trainable / shards
    base = (work.base_block_bytes * shape.layers + work.base_root_bytes) / shards
    block, root = _gathered_block(work), _gathered_root(work)
    block_items, root_items = _trainable_block(work), _trainable_root(work)
    block_gradients = (work.compute_bytes + _FP32) * block_items  # as they are computed, and as they are reduced
    host, device = (1, 0) if work.offloads else (0, 1)
    on_the_way = 0 if device else _FP32 * (block_items + base / max(1, shape.layers)) / shards
    return Spread(
        parameters=device * trainable,
        base=device * base + work.base_scale_bytes,
        optimizer=device * 2 * trainable,
        gradients_before=device * trainable if work.passes > 1 else 0,
        gradients_of_head=0,
        gradients_late=device
        * (trainable if work.passes > 1 else trainable - _FP32 * (block_items + root_items) / shards),
        gradients=device * trainable,
        gathered_loss=root,
        gathered_backward=root + work.compute_bytes * _trainable_head(work) + 2 * block + block_gradients + on_the_way,
        # Weights are let go before gradients are reduced, and those of a group arrive when they are.
        gathered_end=(work.compute_bytes + _FP32) * root_items - device * _FP32 * root_items / shards,
        weight_copies=0,
        head_copy=0,
        cached_copies=0,
        end_workspace=0,
        step_workspace=device * trainable,
        host=HostMemory(
            offload=host * (4 * trainable + base) * work.ranks_per_node,
            staging=_staging(work),
            loading=0 if work.adapter is None else _loading_whole(work),
        ),
    )


def _zero3(work: Workload) -> Spread:
    """Stage 3: its linear layers keep no copy of a weight, and a gradient is gone when it is in the bucket."""
    shape = work.shape
    stage = Stage3(
        trainable=work.trainable,
        all=shape.parameters,
        frozen=work.base_block_bytes * shape.layers + work.base_root_bytes,
        largest=max(shape.embedding, shape.block),
        bytes_each=_FP32 if work.adapter is None else work.compute_bytes,
        ranks=work.ranks,
        offloads=work.offloads,
    )
    gathered = stage.gathered + stage.bucket
    return Spread(
        parameters=stage.parameters,
        base=stage.frozen_part,
        optimizer=stage.optimizer,
        gradients_before=stage.gradients,
        gradients_of_head=stage.gradients,
        gradients_late=stage.gradients,
        gradients=stage.gradients,
        gathered_loss=gathered,
        gathered_backward=gathered + _largest_gradient(work),
        gathered_end=gathered,
        weight_copies=0,
        head_copy=0,
        cached_copies=0,
        # That of an output layer which is the same matrix has waited for it.
        end_workspace=_last_gradient(work) * (2 if shape.is_tied else 1),
        step_workspace=stage.bucket + stage.step_copies,
        host=HostMemory(
            offload=stage.host * work.ranks_per_node,
            staging=_staging(work),
            loading=0 if work.adapter is None else _loading_whole(work),
        ),
    )


def checkpoint_bytes(work: Workload) -> int:
    """Of one checkpoint: what trains, and its moments."""
    return 3 * _FP32 * work.trainable


SPREADS: Mapping[str, Callable[[Workload], Spread]] = {
    "ddp": _replicated,
    "fsdp": _fully_sharded,
    "zero3": _zero3,
}


def _trainable_block(work: Workload) -> int:
    return work.shape.block if work.adapter is None else work.adapter_block


def _trainable_root(work: Workload) -> int:
    return work.shape.root if work.adapter is None else 0


def _trainable_head(work: Workload) -> int:
    return work.shape.embedding if work.adapter is None else 0


def _gathered_block(work: Workload) -> float:
    return work.base_block_bytes + work.compute_bytes * _trainable_block(work)


def _gathered_root(work: Workload) -> float:
    return work.base_root_bytes + work.compute_bytes * _trainable_root(work)


def _weight_copies(work: Workload) -> float:
    return work.compute_bytes * work.shape.layers * work.shape.block_matrices if work.casts_weights else 0


def _head_copy(work: Workload) -> float:
    return work.compute_bytes * work.shape.embedding if work.casts_weights else 0


def _head_gradient(work: Workload) -> float:
    return _FP32 * _trainable_head(work)


def _largest_gradient(work: Workload) -> float:
    """Of a matrix of a block: as it is computed, and in fp32."""
    if work.adapter is not None:
        return 0
    return (work.compute_bytes + _FP32) * max(inputs * outputs for inputs, outputs in work.shape.linears.values())


def _last_gradients(work: Workload) -> float:
    """Those that come when the first block is left."""
    return _FP32 * (_trainable_block(work) + (0 if work.shape.is_tied else _trainable_head(work)))


def _last_gradient(work: Workload) -> float:
    """The embedding's, before it is added to that of the output layer, which is the same matrix, or put in a bucket."""
    shared = work.shape.is_tied or work.ranks > 1
    return _FP32 * _trainable_head(work) if shared else 0


def _staging(work: Workload) -> float:
    """Ranks share what they write; the sharing is even."""
    return checkpoint_bytes(work) * work.ranks_per_node / work.ranks


def _loading_whole(work: Workload) -> float:
    """Each rank reads the whole model into host memory, but 4-bit ones, which are made on the device."""
    number = _FP32 if work.adapter is None else work.compute_bytes
    return 0 if work.is_quantised else work.shape.parameters * number * work.ranks_per_node
