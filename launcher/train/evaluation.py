"""Held-out perplexity, and one completion to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from launcher.recipe import Recipe
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
    sums = torch.zeros(3, dtype=torch.float64, device=engine.device)
    engine.model.eval()
    with torch.no_grad():
        for start in range(0, len(mine), micro):
            if wants_stop():
                sums[2] = 1
                break
            batch = collate([examples[index] for index in mine[start : start + micro]])
            loss, targets = engine.loss(to_device(batch, engine.device))
            sums[:2] += torch.stack([loss.double(), targets.double()])
    engine.model.train()
    dist.all_reduce(sums)
    loss_sum, targets_sum, stops = sums.tolist()
    return None if stops or not targets_sum else math.exp(loss_sum / targets_sum)


def completion(recipe: Recipe, model: LoadedModel, engine: Engine) -> str | None:
    """What the model says to the recipe's prompt, greedily; None when it cannot be asked."""
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
