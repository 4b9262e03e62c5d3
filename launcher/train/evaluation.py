"""Held-out perplexity, and one completion to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from launcher.recipe import Recipe
from launcher.train.agreement import any_rank
from launcher.train.data import Example, collate, prompt_ids, to_device
from launcher.train.engines import Engine
from launcher.train.functions import find_function
from launcher.train.models import LoadedModel


def perplexity(
    engine: Engine, examples: Sequence[Example], *, micro: int, wants_stop: Callable[[], bool]
) -> float | None:
    """exp of the mean loss per target over all ranks' `examples`; None, on all ranks, when one was asked to stop."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = range(rank, len(examples), ranks)
    longest = len(range(0, len(examples), ranks))  # a pass may wait for all ranks: each makes as many as the first one
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    engine.model.eval()
    with torch.no_grad():
        for start in range(0, longest, micro):
            if any_rank(wants_stop(), engine.device):
                engine.model.train()
                return None
            indices = mine[start : start + micro]
            batch = collate([examples[index] for index in indices or (0,)])
            loss, targets = engine.loss(to_device(batch, engine.device))
            if indices:
                sums += torch.stack([loss.double(), targets.double()])
    engine.model.train()
    dist.all_reduce(sums)
    loss_sum, targets_sum = sums.tolist()
    return math.exp(loss_sum / targets_sum) if targets_sum else None


def completion(recipe: Recipe, model: LoadedModel, engine: Engine) -> str | None:
    """What the model says to the recipe's prompt, greedily; None when it cannot be asked.

    All ranks call it where `engine.passes_are_collective`, and get the same answer.
    """
    settings = recipe.evaluation
    if settings.prompt is None:
        return None
    engine.model.eval()
    with torch.no_grad():
        text = _complete(recipe, model, engine)
    engine.model.train()
    return text


def _complete(recipe: Recipe, model: LoadedModel, engine: Engine) -> str | None:
    settings = recipe.evaluation
    if settings.complete is not None:
        return str(find_function(settings.complete)(engine.model, settings.prompt, settings.tokens))
    if model.tokenizer is None:
        return None
    ids = torch.tensor([prompt_ids(str(settings.prompt), model.tokenizer)], device=engine.device)
    output = engine.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=settings.tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.eos_token_id,
    )
    return str(model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
