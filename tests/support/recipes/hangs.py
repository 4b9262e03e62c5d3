"""Recipes one of whose ranks goes wrong without a word. `once`: a folder that remembers that it happened."""

import os
import time
from pathlib import Path

from launcher import Batch, Checkpoint, Data, Evaluation, Model, Recipe, replace


def line_examples(split, *, count=64, once=""):
    """Points of y = 3x + 1; each knows where to remember, for the losses below."""
    import torch

    os.environ["HANGS_ONCE"] = once
    return [
        {"id": f"{split}-{i}", "x": torch.tensor([i / count]), "y": torch.tensor([3 * i / count + 1])}
        for i in range(count)
    ]


def line_model():
    import torch

    return torch.nn.Linear(1, 1)


def squared_error(model, batch):
    import torch

    return (model(batch["x"]) - batch["y"]).square().sum(), torch.tensor(len(batch["ids"]))


_calls = 0


def _is_time(call):
    """On rank 1, at its `call`-th loss, and only once in the life of the run."""
    global _calls
    _calls += 1
    if _calls != call or os.environ["RANK"] != "1":
        return False
    try:
        Path(os.environ["HANGS_ONCE"], "happened").mkdir()
    except FileExistsError:
        return False
    return True


def holds_the_gil(model, batch):
    import re

    if _is_time(6):
        re.match(r"(a?){60}a{60}", "a" * 60)
    return squared_error(model, batch)


def never_joins(model, batch):
    if _is_time(6):
        time.sleep(10_000)
    return squared_error(model, batch)


def is_irregular(model, batch):
    """Most steps are short; one takes 3.5 s, and a later one 7 s."""
    global _calls
    _calls += 1
    time.sleep({4: 3.5, 6: 7.0}.get(_calls, 0.1))
    return squared_error(model, batch)


def is_slow_on_rank_1(model, batch):
    time.sleep(0.2 if os.environ["RANK"] == "1" else 0.01)
    return squared_error(model, batch)


RECIPE = Recipe(
    model=Model(build=line_model),
    data=Data(build=line_examples),
    loss=squared_error,
    steps=12,
    batch=Batch(size=8, micro=4),
    checkpoint=Checkpoint(every=4),
    evaluation=Evaluation(samples=0),
)
GIL = replace(RECIPE, loss=holds_the_gil)
NEVER_JOINS = replace(RECIPE, loss=never_joins)
IRREGULAR = replace(RECIPE, loss=is_irregular, steps=8)
SLOW_RANK = replace(RECIPE, loss=is_slow_on_rank_1)
