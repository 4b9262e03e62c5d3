"""Engines: how one optimizer step is computed under a parallel strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch

from launcher.recipe import Recipe

Batch = dict[str, Any]  # tensors by name, and `ids`, the list of sample ids


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step over all ranks: mean `loss` per target, number of targets, gradient norm before clipping.

    should_stop: some rank was asked to stop; the same on every rank.
    own_seconds: this rank's own work, up to the last sum it waits for others in; None where a strategy cannot tell.
    """

    loss: float
    targets: int
    tokens: int  # that were read, padding excluded
    grad_norm: float
    should_stop: bool
    own_seconds: float | None = None


class Engine(Protocol):
    """The same maths under every strategy. `model` is what evaluation calls; `device` is where batches must be."""

    model: torch.nn.Module
    device: torch.device

    def train_step(self, micro_batches: Sequence[Batch], *, lr: float, wants_stop: bool) -> StepResult:
        """Forward, backward, optimizer step. Before the latter it raises NonFiniteLoss or PeerFailed, on all ranks."""
        ...

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of losses, number of targets) of one micro-batch on this rank."""
        ...

    def state(self) -> Mapping[str, torch.Tensor]:
        """What a checkpoint holds, by canonical name: `model.NAME`, `optimizer.NAME.MOMENT`; live tensors."""
        ...


def count_tokens(micro_batches: Sequence[Batch]) -> int:
    """The tokens of these batches, padding excluded; samples, where the data has no tokens."""
    return sum(len(b["ids"]) if "input_ids" not in b else _token_count(b) for b in micro_batches)


def _token_count(batch: Batch) -> int:
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


_ENGINES = {"ddp": "launcher.train.engines.ddp:DataParallelEngine"}


def make_engine(recipe: Recipe, model: torch.nn.Module, device: torch.device, precision: str) -> Engine:
    module, _, attribute = _ENGINES[recipe.parallel.strategy].partition(":")
    engine: Engine = getattr(import_module(module), attribute)(recipe, model, device, precision)
    return engine
