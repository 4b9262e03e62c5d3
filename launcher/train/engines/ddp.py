"""Data parallelism: every rank holds the whole model; gradients are added up by DistributedDataParallel."""

# Without `from __future__ import annotations`: DDP looks at the annotations of a communication hook.
import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from launcher.recipe import Recipe
from launcher.train.engines import Batch, StepResult, count_tokens
from launcher.train.engines.own_time import OwnTime, make_own_time
from launcher.train.failures import NonFiniteLoss, PeerFailed
from launcher.train.functions import loss_function
from launcher.train.models import saved_buffers
from launcher.train.optim import MOMENTS, make_adamw


class DataParallelEngine:
    def __init__(self, recipe: Recipe, model: torch.nn.Module, device: torch.device, precision: str) -> None:
        self.model = model
        self.device = device
        self._clip = recipe.optimizer.clip
        self._loss_function = loss_function(recipe.loss)
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = {} if recipe.adapter else saved_buffers(model)
        self._optimizer = make_adamw(self._trainable, recipe.optimizer)
        self._own_time = make_own_time(device)
        self._is_alone = dist.get_world_size() == 1
        self._replica = model if self._is_alone else _replicate(model, self._own_time)

    def train_step(self, micro_batches: Sequence[Batch], *, lr: float, wants_stop: bool) -> StepResult:
        self._own_time.start()
        sums = self._accumulate_gradients(micro_batches)
        if self._is_alone:
            self._own_time.mark()  # there is nobody to wait for
        is_finite = bool(torch.isfinite(sums[0]))
        # One collective carries the loss, the votes to stop, and the veto of a rank whose loss is not finite.
        votes = torch.cat([sums, sums.new_tensor([count_tokens(micro_batches), wants_stop, not is_finite])])
        if not self._is_alone:
            dist.all_reduce(votes)
        loss_sum, targets, tokens, stops, vetoes = votes.tolist()
        if vetoes:
            self._refuse(float(sums[0]), is_finite, micro_batches)
        grad_norm = self._scale_and_clip(1 / targets)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=self._is_alone)  # DDP's gradients are views of its buckets and stay
        return StepResult(
            loss=loss_sum / targets,
            targets=int(targets),
            tokens=int(tokens),
            grad_norm=grad_norm,
            should_stop=stops > 0,
            own_seconds=self._own_time.seconds(),
        )

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._loss(self.model, batch)

    def state(self) -> Mapping[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {f"model.{name}": p.detach() for name, p in self._trainable.items()}
        for name, buffer in self._buffers.items():
            if not self._is_alone:
                dist.broadcast(buffer, 0)  # rank 0's are those that DDP goes on with
            state[f"model.{name}"] = buffer
        for name, parameter in self._trainable.items():
            for moment in MOMENTS:
                state[f"optimizer.{name}.{moment}"] = self._optimizer.state[parameter][moment]
        return state

    def _accumulate_gradients(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """Add up the gradients of the *sum* of losses; [loss sum, targets] of this rank, in float64.

        Sums, not means: dividing by the number of targets of the whole global batch afterwards gives the same gradient
        however the batch is cut into ranks and micro-batches.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self._synchronised(is_last):
                loss_sum, targets = self._loss(self._replica, batch)
                loss_sum.backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([loss_sum.detach().double(), targets.double()])
        return sums

    @contextlib.contextmanager
    def _synchronised(self, is_last: bool) -> Iterator[None]:
        if is_last or not isinstance(self._replica, DistributedDataParallel):
            yield
        else:
            with self._replica.no_sync():
                yield

    def _loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            loss_sum, targets = self._loss_function(model, batch)
        return loss_sum, torch.as_tensor(targets, device=self.device)

    def _scale_and_clip(self, scale: float) -> float:
        gradients = [p.grad for p in self._trainable.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) * scale
        if self._clip is not None and norm > self._clip:
            scale *= self._clip / (norm + 1e-6)
        torch._foreach_mul_(gradients, scale)
        return norm

    def _refuse(self, loss: float, is_finite: bool, micro_batches: Sequence[Batch]) -> None:
        if is_finite:
            raise PeerFailed("the loss is not finite on another rank")
        ids = [str(sample) for batch in micro_batches for sample in batch["ids"]]
        shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
        raise NonFiniteLoss(f"the loss is {loss}; samples: {shown}")


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
