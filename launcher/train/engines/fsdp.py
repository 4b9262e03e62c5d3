"""Fully sharded data parallelism (FSDP2): a rank holds its shard of each layer, and gathers one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from checkpoints.flat_shard import State
from launcher.errors import UsageError
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.train.engines.own_time import OwnTime, make_own_time
from launcher.train.engines.strategy import LossOf, named_state, square_norm
from launcher.train.models import repeated_blocks, saved_buffers
from launcher.train.optim import make_adamw
from launcher.train.precision import COMPUTE_DTYPES

_REPLICATE, _SHARD = "replicate", "shard"


class FullySharded:
    passes_are_collective = True

    def __init__(
        self, recipe: Recipe, plan: Plan, model: torch.nn.Module, device: torch.device, precision: str
    ) -> None:
        mesh = make_mesh(plan, device, shards_within_node=recipe.parallel.shard_within_node)
        shard_module(model, mesh, precision, offloads=recipe.parallel.cpu_offload)
        _allocate(model, torch.device("cpu") if recipe.parallel.cpu_offload else device)
        self.model = model
        self.own_time: OwnTime | None = make_own_time(device) if plan.topology.ranks == 1 else None
        self._device = device
        self._is_first_replica = mesh.ndim == 1 or mesh.get_local_rank(_REPLICATE) == 0
        self._buffers = {} if recipe.adapter else saved_buffers(model)
        self._parameters = {name: _as_dtensor(p) for name, p in model.named_parameters() if p.requires_grad}
        # The optimizer works on what this rank holds, as plain tensors: the same arithmetic as without sharding, and
        # none of the cost that DTensor adds to each operation.
        self._shards = {
            name: _as_dtensor(parameter.detach()).to_local() for name, parameter in self._parameters.items()
        }
        self._optimizer = make_adamw(self._shards, recipe.optimizer)
        self._moments = {name: self._sharded_moments(name) for name in self._parameters}

    def accumulate(self, loss_of: LossOf, *, is_last: bool) -> None:
        # Each micro-batch's gradients are reduced at once: keeping them whole until the last would take the memory
        # that sharding saves.
        loss_of(self.model).backward()  # type: ignore[no-untyped-call]

    def gradients(self) -> Mapping[str, torch.Tensor | None]:
        return {name: _local_gradient(parameter) for name, parameter in self._parameters.items()}

    def square_norm(self) -> torch.Tensor:
        return square_norm(self._present_gradients() if self._is_first_replica else [], self._device)

    def step(self, *, lr: float, scale: float) -> None:
        torch._foreach_mul_(self._present_gradients(), scale)
        for name, gradient in self.gradients().items():
            self._shards[name].grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> State:
        return named_state(self._parameters, self._buffers, self._moments)

    def _sharded_moments(self, name: str) -> dict[str, torch.Tensor]:
        """The moments of a parameter, cut as it is; the optimizer works on the same memory."""
        moments: dict[str, torch.Tensor] = self._optimizer.state[self._shards[name]]
        sharded = {moment: torch.zeros_like(self._parameters[name]) for moment in moments if moment != "step"}
        moments |= {moment: _as_dtensor(tensor).to_local() for moment, tensor in sharded.items()}
        return {"step": moments["step"], **sharded}

    def state_restored(self) -> None:
        """The state is what the model computes with."""

    def _present_gradients(self) -> list[torch.Tensor]:
        return [gradient for gradient in self.gradients().values() if gradient is not None]


def make_mesh(plan: Plan, device: torch.device, *, shards_within_node: bool) -> DeviceMesh:
    nodes, ranks_per_node = plan.topology.nodes, plan.topology.ranks_per_node
    if shards_within_node:
        return init_device_mesh(device.type, (nodes, ranks_per_node), mesh_dim_names=(_REPLICATE, _SHARD))
    return init_device_mesh(device.type, (nodes * ranks_per_node,), mesh_dim_names=(_SHARD,))


def shard_module(model: torch.nn.Module, mesh: DeviceMesh, precision: str, *, offloads: bool) -> None:
    """Shard the model in place: each repeated block is gathered by itself, and the rest of the model together."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            remedy = "give it the shape (1,), or use parallel.strategy=ddp"
            raise UsageError(f"parallel.strategy=fsdp cannot shard the parameter {name}, a single number; {remedy}")
    dtype = COMPUTE_DTYPES[precision]
    mixed = MixedPrecisionPolicy() if dtype is None else MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloads else OffloadPolicy()
    for module in (*repeated_blocks(model), model):
        fully_shard(module, mesh=mesh, mp_policy=mixed, offload_policy=offload)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums over ranks, not means: the engine divides once, by the number of targets of all ranks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


def _allocate(model: torch.nn.Module, device: torch.device) -> None:
    """Memory for the shards of a model that was built without; what will be in it comes from a checkpoint."""
    if any(parameter.is_meta for parameter in model.parameters()):
        model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)  # type: ignore[no-untyped-call]


def _as_dtensor(tensor: torch.Tensor) -> DTensor:
    assert isinstance(tensor, DTensor)
    return tensor


@torch.no_grad()
def _local_gradient(parameter: DTensor) -> torch.Tensor | None:
    gradient = parameter.grad
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
