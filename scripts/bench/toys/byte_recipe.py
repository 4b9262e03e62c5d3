"""The work of scripts/bench/loop as a recipe of the launcher."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from launcher import AdamW, Batch, Checkpoint, Data, Evaluation, Model, Parallel, Recipe

if TYPE_CHECKING:
    import torch

RANKS = int(os.environ["BENCH_RANKS"])


def build_model() -> torch.nn.Module:
    import byte_work

    from launcher.train.gpt import byte_gpt

    return byte_gpt(**byte_work.ARGUMENTS)


def loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    import byte_work

    return byte_work.loss(model, batch)


RECIPE = Recipe(
    model=Model(build=build_model),
    data=Data(path=os.environ["BENCH_DATA"], sequence_length=128),
    loss=loss,
    parallel=Parallel(strategy=os.environ["BENCH_STRATEGY"]),
    steps=1_000_000,
    batch=Batch(size=4 * RANKS, micro=4),
    optimizer=AdamW(lr=1e-3),
    checkpoint=Checkpoint(every=1_000_000),
    evaluation=Evaluation(samples=0),
)
