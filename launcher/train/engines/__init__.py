"""Engines: how one optimizer step is computed under a parallel strategy."""

from __future__ import annotations

from importlib import import_module

import torch

from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.strategies import STRATEGIES
from launcher.train.engines.engine import Batch, Engine, StepResult, count_tokens
from launcher.train.engines.strategy import Strategy, weights_of

__all__ = ["Batch", "Engine", "StepResult", "count_tokens", "make_engine", "weights_of"]


def make_engine(recipe: Recipe, plan: Plan, model: torch.nn.Module, device: torch.device, precision: str) -> Engine:
    found = STRATEGIES[recipe.parallel.strategy]
    make = getattr(import_module(found.module), found.implementation.partition(":")[2])
    strategy: Strategy = make(recipe, plan, model, device, precision)
    return Engine(recipe, plan, strategy, device, precision)
