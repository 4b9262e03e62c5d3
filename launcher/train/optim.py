"""The optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from launcher.recipe import AdamW, Schedule

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def make_adamw(parameters: Mapping[str, torch.Tensor], settings: AdamW) -> torch.optim.AdamW:
    """AdamW over named parameters, with its moments."""
    optimizer = new_adamw(parameters, settings)
    add_moments(optimizer, parameters.values())
    return optimizer


def new_adamw(parameters: Mapping[str, torch.Tensor], settings: AdamW) -> torch.optim.AdamW:
    """AdamW over named parameters. Weight decay applies to matrices only: not to biases, norms or other vectors."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps
    )


def add_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
    """Moments from the start, as zeros, so that the first checkpoint and every restore see the same tensors."""
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The learning rate of step 1 .. steps: linear warm-up to `peak`, then the schedule's decay."""
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    decayed = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    shape = 1 - decayed if schedule.kind == "linear" else (1 + math.cos(math.pi * decayed)) / 2
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)
