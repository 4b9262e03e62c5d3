"""Data parallelism: every rank holds the whole model; gradients are added up by DistributedDataParallel."""

# Without `from __future__ import annotations`: DDP looks at the annotations of a communication hook.
import contextlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from checkpoints.flat_shard import State
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.train.engines.own_time import OwnTime, make_own_time
from launcher.train.engines.strategy import LossOf, named_state, square_norm
from launcher.train.models import saved_buffers
from launcher.train.optim import make_adamw


class DataParallel:
    passes_are_collective = False

    def __init__(
        self, recipe: Recipe, plan: Plan, model: torch.nn.Module, device: torch.device, precision: str
    ) -> None:
        self.model = model
        self.own_time = make_own_time(device)
        self._device = device
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = {} if recipe.adapter else saved_buffers(model)
        self._optimizer = make_adamw(self._trainable, recipe.optimizer)
        self._is_alone = plan.topology.ranks == 1
        self._replica = model if self._is_alone else _replicate(model, self.own_time)

    def accumulate(self, loss_of: LossOf, *, is_last: bool) -> None:
        replica = self._replica
        sums_later = isinstance(replica, DistributedDataParallel) and not is_last
        with replica.no_sync() if sums_later else contextlib.nullcontext():  # type: ignore[operator]
            loss_of(replica).backward()  # type: ignore[no-untyped-call]

    def gradients(self) -> Mapping[str, torch.Tensor | None]:
        return {name: parameter.grad for name, parameter in self._trainable.items()}

    def square_norm(self) -> torch.Tensor:
        is_first = dist.get_rank() == 0  # of the ranks, each of which has the whole gradient
        return square_norm(self._present_gradients() if is_first else [], self._device)

    def step(self, *, lr: float, scale: float) -> None:
        torch._foreach_mul_(self._present_gradients(), scale)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=self._is_alone)  # DDP's gradients are views of its buckets and stay

    def state(self) -> State:
        moments = {name: self._optimizer.state[parameter] for name, parameter in self._trainable.items()}
        return named_state(self._trainable, self._buffers, moments)

    def state_restored(self) -> None:
        """The state is what the model computes with."""

    def _present_gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self._trainable.values() if p.grad is not None]


def _replicate(model: torch.nn.Module, own_time: OwnTime) -> DistributedDataParallel:
    """Every rank builds the same model from the same seed, so nothing is broadcast.

    Two habits of DDP make its first step round differently from later ones, so that a resumed run would drift from an
    undisturbed one. It regroups its buckets after the first step: `find_unused_parameters` keeps it from that. And it
    averages by a product first, by a quotient later: the hook sums, and the caller divides once.
    """
    replica = DistributedDataParallel(model, init_sync=False, find_unused_parameters=True, gradient_as_bucket_view=True)
    replica.register_comm_hook(own_time, _sum_over_ranks)
    return replica


def _sum_over_ranks(own_time: OwnTime, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    own_time.mark()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
