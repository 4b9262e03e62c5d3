"""ZeRO, by DeepSpeed: ranks share out the optimizer state, from stage 2 on the gradients too, in stage 3 parameters.

DeepSpeed cuts flat buffers into equal partitions, without regard to where a parameter begins. What it calls from here
is its engine alone: processes, process group, clipping, loss scaling and checkpoints are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from checkpoints.flat_shard import FlatShard, State
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.train.engines.own_time import OwnTime, make_own_time
from launcher.train.engines.strategy import LossOf, named_state, square_norm
from launcher.train.failures import NonFiniteLoss
from launcher.train.models import saved_buffers
from launcher.train.optim import add_moments, new_adamw
from launcher.train.precision import COMPUTE_DTYPES

_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
_MOST_BUCKET_ITEMS = 50_000_000

# Otherwise DeepSpeed compiles a collective that it never uses here, and a machine without a compiler cannot train.
deepspeed.ops.__compatible_ops__ = {}
# It calls torch's collectives by names that are going out of use, and each call would add two lines to the rank's log.
warnings.filterwarnings("ignore", r".*(all_gather_into|reduce_scatter)_tensor. is deprecated", FutureWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What this rank updates of a parameter: `count` items from `start` on, at `position` of its partition `group`."""

    group: int
    position: int
    start: int
    count: int
    shape: tuple[int, ...]

    def of(self, flat: torch.Tensor) -> FlatShard:
        items = flat.detach()[self.position : self.position + self.count]
        return FlatShard(items=items, shape=self.shape, start=self.start)


class Zero:
    """passes_are_collective: stage 2 waits for the other ranks in each backward pass, stage 3 in forward ones too."""

    def __init__(
        self, recipe: Recipe, plan: Plan, model: torch.nn.Module, device: torch.device, precision: str
    ) -> None:
        stage = _STAGES[recipe.parallel.strategy]
        self.model = model
        self.own_time: OwnTime | None = make_own_time(device) if plan.topology.ranks == 1 else None
        self.passes_are_collective = stage > 1
        self._ranks = plan.topology.ranks
        self._device = device
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adamw = new_adamw(self._trainable, recipe.optimizer)  # now, while parameters have their shapes
        config = _config(recipe, stage, device, sum(p.numel() for p in self._trainable.values()))
        deepspeed.init_distributed()  # it takes the process group that is there
        if stage == 3:
            _partition(model, device, config)
        _compute_in(COMPUTE_DTYPES[precision], model, device)
        self._buffers = {} if recipe.adapter else saved_buffers(model)
        self._engine, *_ = deepspeed.initialize(
            model=model, model_parameters=list(self._trainable.values()), optimizer=self._adamw, config=config
        )
        self._partitions = _Parameters(self._engine) if stage == 3 else _OptimizerStates(self._engine)
        add_moments(self._adamw, self._partitions.flats)
        parts = dict(self._partitions.parts())
        self._parts = {name: parts[parameter] for name, parameter in self._trainable.items()}

    def accumulate(self, loss_of: LossOf, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss_of(self._engine), scale_wrt_gas=False)

    def gradients(self) -> Mapping[str, torch.Tensor | None]:
        arrived = dict(self._partitions.gradients())
        return {name: arrived.get(parameter) for name, parameter in self._trainable.items()}

    def square_norm(self) -> torch.Tensor:
        return square_norm(self._gradients(), self._device) * self._ranks**2

    def step(self, *, lr: float, scale: float) -> None:
        torch._foreach_mul_(self._gradients(), scale * self._ranks)  # DeepSpeed has taken the mean over ranks
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._engine.step()
        if not self._engine.was_step_applied():
            raise NonFiniteLoss("DeepSpeed did not take the step: it found a gradient that is not finite")
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self._partitions.drop_gradients()

    def state(self) -> State:
        flats = self._partitions.flats
        weights = {name: part.of(flats[part.group]) for name, part in self._parts.items()}
        moments = {name: dict(self._moments(part)) for name, part in self._parts.items()}
        return named_state(weights, self._buffers, moments)

    def state_restored(self) -> None:
        self._partitions.spread()

    def _gradients(self) -> list[torch.Tensor]:
        return [gradient for _, gradient in self._partitions.gradients()]

    def _moments(self, part: _Part) -> Iterator[tuple[str, torch.Tensor | FlatShard]]:
        for name, value in self._adamw.state[self._partitions.flats[part.group]].items():
            yield name, part.of(value) if value.ndim else value


class _OptimizerStates:
    """Stages 1 and 2: each rank has all parameters, one after the other in a flat buffer, and updates a part of it."""

    def __init__(self, engine: Any) -> None:
        self._optimizer = engine.optimizer
        self.flats: list[torch.Tensor] = self._optimizer.single_partition_of_fp32_groups

    def parts(self) -> Iterator[tuple[torch.nn.Parameter, _Part]]:
        for group, parameters in enumerate(self._optimizer.bit16_groups):
            for parameter in parameters:
                mapping = parameter._hp_mapping  # None where this rank updates nothing of it
                here = None if mapping is None else mapping.hp_fragment_address
                yield (
                    parameter,
                    _Part(
                        group=group,
                        position=0 if here is None else here.start,
                        start=0 if here is None else mapping.lp_fragment_address.start,
                        count=0 if here is None else here.numel,
                        shape=tuple(parameter.shape),
                    ),
                )

    def gradients(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        if self._optimizer.cpu_offload:
            yield from _gradients_in(self.flats, self.parts())
            return
        for group, gradients in self._optimizer.averaged_gradients.items():
            # The last of them may be padding.
            yield from zip(self._optimizer.params_in_partition[group], gradients, strict=False)

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad()
        self._optimizer.micro_step_id = -1  # the next gradients replace those that are there
        _clear_gradients_in(self.flats)

    def spread(self) -> None:
        """Give all ranks the parameters that this one updates."""
        self._optimizer.update_lp_params()


class _Parameters:
    """Stage 3: each rank has an equal part of each parameter, which it updates and others gather when they need it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._optimizer = engine.optimizer
        self.flats: list[torch.Tensor] = self._optimizer.fp32_partitioned_groups_flat

    def parts(self) -> Iterator[tuple[torch.nn.Parameter, _Part]]:
        for parameter, group, position in self._places():
            size = parameter.ds_tensor.ds_numel  # the same on each rank: the last ones may have padding
            start = min(dist.get_rank() * size, parameter.ds_numel)
            yield (
                parameter,
                _Part(
                    group=group,
                    position=position,
                    start=start,
                    count=min(size, parameter.ds_numel - start),
                    shape=tuple(parameter.ds_shape),
                ),
            )

    def gradients(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        if self._optimizer.offload_optimizer:
            yield from _gradients_in(self.flats, self.parts())
            return
        for group, gradients in self._optimizer.averaged_gradients.items():
            yield from zip(self._optimizer.fp16_groups[group], gradients, strict=True)

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad()
        self._optimizer.grad_partitions_flat_buffer.zero_()
        _clear_gradients_in(self.flats)

    def spread(self) -> None:
        """What other ranks gather is a copy of what this one updates."""
        self._engine.empty_partition_cache()
        for parameter, group, position in self._places():
            gathered = parameter.ds_tensor
            gathered.data.copy_(self.flats[group].detach()[position : position + gathered.ds_numel])

    def _places(self) -> Iterator[tuple[Any, int, int]]:
        """(parameter, group, position in the group's partition) of each trainable parameter."""
        for group, parameters in enumerate(self._optimizer.fp16_groups):
            position = 0
            for parameter in parameters:
                yield parameter, group, position
                position += parameter.ds_tensor.ds_numel


def _gradients_in(
    flats: list[torch.Tensor], parts: Iterator[tuple[torch.nn.Parameter, _Part]]
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The gradients that DeepSpeed has put on the host, beside the partitions there."""
    for parameter, part in parts:
        gradient = flats[part.group].grad
        assert gradient is not None
        yield parameter, gradient[part.position : part.position + part.count]


def _clear_gradients_in(flats: list[torch.Tensor]) -> None:
    """The gradient of a parameter that the next batches do not use would count again."""
    for flat in flats:
        if flat.grad is not None:
            flat.grad.zero_()


class _OneByOne(torch.nn.Module):
    """The parameters of a model; one that was built without memory gets some when its turn comes."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self._all = list(model.parameters())
        self._device = device

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        for parameter in self._all:
            if parameter.is_meta:
                memory = torch.empty_like(parameter, device=self._device)
                filled = torch.nn.Parameter(memory, requires_grad=parameter.requires_grad)
                torch.utils.swap_tensors(parameter, filled)  # type: ignore[no-untyped-call]
            yield parameter


def _partition(model: torch.nn.Module, device: torch.device, config: Mapping[str, object]) -> None:
    """Leave this rank its part of each parameter: the device never has room for more than one whole parameter."""
    deepspeed.zero.Init(module=_OneByOne(model, device), config_dict_or_path=config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _compute_in(dtype: torch.dtype | None, model: torch.nn.Module, device: torch.device) -> None:
    """Have the model autocast by itself: DeepSpeed turns off what its caller has turned on.

    Without the cache, which would keep a copy of each parameter that was gathered.
    """
    if dtype is not None:
        autocast = torch.autocast(device.type, dtype=dtype, cache_enabled=False)
        model.forward = autocast(model.forward)


def _config(recipe: Recipe, stage: int, device: torch.device, items: int) -> Mapping[str, object]:
    zero: dict[str, object] = {"stage": stage, "reduce_bucket_size": min(items, _MOST_BUCKET_ITEMS)}
    if recipe.parallel.cpu_offload:
        host = {"device": "cpu", "pin_memory": device.type == "cuda"}
        zero["offload_optimizer"] = host
        if stage == 3:
            zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # it only counts with it
        "gradient_clipping": 0.0,  # the default is 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # that one is compiled when it is first used
        "zero_optimization": zero,
    }
