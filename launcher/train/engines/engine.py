"""One optimizer step: the same maths under every strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from checkpoints.flat_shard import State
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.train.engines.first_gradients import check_first_gradients
from launcher.train.engines.strategy import Strategy
from launcher.train.failures import NonFiniteLoss, PeerFailed
from launcher.train.functions import loss_function
from launcher.train.precision import COMPUTE_DTYPES, LossScale

Batch = dict[str, Any]  # tensors by name, and `ids`, the list of sample ids


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step over all ranks: mean `loss` per target, number of targets, gradient norm before clipping.

    should_stop: some rank was asked to stop; should_save: some rank finds that a save is due. The same on every rank.
    own_seconds: this rank's own work, up to the last sum it waits for others in; None where a strategy cannot tell.
    """

    loss: float
    targets: int
    tokens: int  # that were read, padding excluded
    grad_norm: float
    should_stop: bool
    should_save: bool
    own_seconds: float | None = None


class _Total(NamedTuple):
    """Over all ranks; stops and saves are the numbers of ranks that want to."""

    loss: float
    targets: float
    square_norm: float
    tokens: float
    stops: float
    saves: float


class Engine:
    """Computes the recipe's steps. `model` is what evaluation calls; `device` is where batches must be.

    loss_scale: None, except in fp16; a checkpoint has to hold it.
    """

    def __init__(self, recipe: Recipe, plan: Plan, strategy: Strategy, device: torch.device, precision: str) -> None:
        self.model = strategy.model
        self.device = device
        self.passes_are_collective = strategy.passes_are_collective
        self.loss_scale = LossScale() if precision == "fp16" else None
        self._strategy = strategy
        self._passes = plan.accumulation if strategy.passes_are_collective else 0
        self._has_unseen_adapters = recipe.adapter is not None
        self._clip = recipe.optimizer.clip
        self._loss_function = loss_function(recipe.loss)
        self._compute_dtype = COMPUTE_DTYPES[precision]

    def train_step(
        self, micro_batches: Sequence[Batch], *, lr: float, wants_stop: bool, wants_save: bool = False
    ) -> StepResult:
        """Forward, backward, optimizer step. Before the latter it raises NonFiniteLoss or PeerFailed, on all ranks."""
        own_time = self._strategy.own_time
        if own_time is not None:
            own_time.start()
        while True:
            sums = self._accumulate_gradients(micro_batches)
            if own_time is not None and dist.get_world_size() == 1:
                own_time.mark()  # there is nobody to wait for
            total = self._add_up(sums, micro_batches, wants_stop, wants_save)
            scale = 1 / (total.targets * self._loss_factor)
            grad_norm = math.sqrt(total.square_norm) * scale
            if math.isfinite(grad_norm):
                break
            self._handle_overflow(grad_norm, micro_batches)
        if self._has_unseen_adapters:
            check_first_gradients(self._strategy.gradients(), self.device)
            self._has_unseen_adapters = False
        self._strategy.step(lr=lr, scale=self._clipped(scale, grad_norm))
        if self.loss_scale is not None:
            self.loss_scale.grow()
        return StepResult(
            loss=total.loss / total.targets,
            targets=int(total.targets),
            tokens=int(total.tokens),
            grad_norm=grad_norm,
            should_stop=total.stops > 0,
            should_save=total.saves > 0,
            own_seconds=None if own_time is None else own_time.seconds(),
        )

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of losses, number of targets) of one micro-batch on this rank."""
        return self._loss(self.model, batch)

    def state(self) -> State:
        """What a checkpoint holds, by canonical name: `model.NAME`, `optimizer.NAME.MOMENT`; live tensors."""
        return self._strategy.state()

    def state_restored(self) -> None:
        """To be called when something was written into the state, on all ranks."""
        self._strategy.state_restored()

    @property
    def _loss_factor(self) -> float:
        return 1.0 if self.loss_scale is None else self.loss_scale.factor

    def _accumulate_gradients(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """Add up the gradients of the *sum* of losses; [loss sum, targets] of this rank, in float64.

        Sums, not means: dividing by the number of targets of the whole global batch afterwards gives the same gradient
        however the batch is cut into ranks and micro-batches.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        passes = max(self._passes, len(micro_batches))
        for index in range(passes):
            # A rank whose share has fewer micro-batches than another's goes along with one that counts for nothing.
            batch = micro_batches[min(index, len(micro_batches) - 1)]
            counts = index < len(micro_batches)

            def loss_of(model: torch.nn.Module, batch: Batch = batch, counts: bool = counts) -> torch.Tensor:
                loss_sum, targets = self._loss(model, batch)
                if not counts:
                    return loss_sum * 0
                sums.add_(torch.stack([loss_sum.detach().double(), targets.double()]))
                return loss_sum if self.loss_scale is None else loss_sum * self.loss_scale.factor

            self._strategy.accumulate(loss_of, is_last=index == passes - 1)
        return sums

    def _add_up(self, sums: torch.Tensor, micro_batches: Sequence[Batch], wants_stop: bool, wants_save: bool) -> _Total:
        """One collective carries all that the ranks tell each other in a step, and the veto of a rank whose loss is not
        finite."""
        is_finite = bool(torch.isfinite(sums[0]))
        own = [count_tokens(micro_batches), wants_stop, wants_save, not is_finite]
        votes = torch.cat([sums, self._strategy.square_norm().view(1), sums.new_tensor(own)])
        if dist.get_world_size() > 1:
            dist.all_reduce(votes)
        *total, vetoes = votes.tolist()
        if vetoes and is_finite:
            raise PeerFailed("the loss is not finite on another rank")
        if vetoes:
            raise NonFiniteLoss(f"the loss is {float(sums[0])}; {_samples(micro_batches)}")
        return _Total(*total)

    def _handle_overflow(self, grad_norm: float, micro_batches: Sequence[Batch]) -> None:
        """Get ready to compute the step again with a smaller loss scale; without one that cannot help."""
        if self.loss_scale is None:
            raise NonFiniteLoss(f"the loss is finite, but its gradient is not ({grad_norm}); {_samples(micro_batches)}")
        self.loss_scale.shrink()
        self._strategy.drop_gradients()

    def _clipped(self, scale: float, norm: float) -> float:
        return scale if self._clip is None or norm <= self._clip else scale * (self._clip / (norm + 1e-6))

    def _loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, dtype=self._compute_dtype, enabled=self._compute_dtype is not None):
            loss_sum, targets = self._loss_function(model, batch)
        return loss_sum, torch.as_tensor(targets, device=self.device)


def count_tokens(micro_batches: Sequence[Batch]) -> int:
    """The tokens of these batches, padding excluded; samples, where the data has no tokens."""
    return sum(len(b["ids"]) if "input_ids" not in b else _token_count(b) for b in micro_batches)


def _token_count(batch: Batch) -> int:
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def _samples(micro_batches: Sequence[Batch]) -> str:
    ids = [str(sample) for batch in micro_batches for sample in batch["ids"]]
    return f"samples: {', '.join(ids[:16])}" + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
