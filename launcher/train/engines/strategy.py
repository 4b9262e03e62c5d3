"""What the strategies do differently: how a model is spread over ranks, and how their gradients come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from checkpoints.flat_shard import State
from launcher.train.engines.own_time import OwnTime
from launcher.train.optim import MOMENTS

LossOf = Callable[[torch.nn.Module], torch.Tensor]


class Strategy(Protocol):
    """Everything else about a step is `engine.Engine`'s. Made as `make(recipe, plan, model, device, precision)`.

    model: what evaluation calls; it has the methods of the recipe's model.
    own_time: None where a rank waits for others all through a step.
    passes_are_collective: each forward pass waits for the other ranks, so all of them have to make it.
    """

    model: torch.nn.Module
    own_time: OwnTime | None
    passes_are_collective: bool

    def accumulate(self, loss_of: LossOf, *, is_last: bool) -> None:
        """Add the gradient of `loss_of` the model in training to those of the step.

        After the last one they are the sums (not the means) over all ranks.
        """
        ...

    def gradients(self) -> Mapping[str, torch.Tensor | None]:
        """Of each trainable parameter, by canonical name, the part that this rank holds; None where none arrived."""
        ...

    def square_norm(self) -> torch.Tensor:
        """One number in float64: those of all ranks add up to the square of the norm of the whole gradient."""
        ...

    def step(self, *, lr: float, scale: float) -> None:
        """One optimizer step with the gradients times `scale`; they are gone afterwards."""
        ...

    def drop_gradients(self) -> None: ...

    def state(self) -> State:
        """What a checkpoint holds, by canonical name: `model.NAME`, `optimizer.NAME.MOMENT`; live tensors."""
        ...

    def state_restored(self) -> None:
        """Called when something was written into the state, on all ranks: what was made from it has to be made anew."""
        ...


def square_norm(gradients: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The square of the norm of these, in float64 on the device."""
    return torch.nn.utils.get_total_norm(gradients).to(device, torch.float64).square()


def named_state(parameters: State, buffers: Mapping[str, torch.Tensor], moments: Mapping[str, State]) -> State:
    """The state under its canonical names. Ranks may have come to other buffers: from now on they have rank 0's."""
    state = {
        f"model.{name}": value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in parameters.items()
    }
    for name, buffer in buffers.items():
        if dist.get_world_size() > 1:
            dist.broadcast(buffer, 0)
        state[f"model.{name}"] = buffer
    for name in parameters:
        state |= {f"optimizer.{name}.{moment}": moments[name][moment] for moment in MOMENTS}
    return state


def weights_of(state: State) -> State:
    """The weights and buffers of a state, by the model's own names."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
