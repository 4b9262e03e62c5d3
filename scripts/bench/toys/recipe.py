"""The toy as a recipe of the launcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher import Batch, Checkpoint, Data, Evaluation, Model, Recipe

if TYPE_CHECKING:
    import torch


def build_model() -> torch.nn.Module:
    import toy

    return toy.build()


def build_data(split: str) -> list[dict[str, Any]]:
    import torch
    import toy

    return [{"id": f"{split}-{i}", "x": torch.randn(toy.WIDTH)} for i in range(64)]


def loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Called at the start of each step: that the step before is done is what a second call tells."""
    import torch
    import toy

    toy.tell("starts step")
    count = torch.tensor(len(batch["ids"]))
    return toy.loss(model, batch["x"]) * count, count


RECIPE = Recipe(
    model=Model(build=build_model),
    data=Data(build=build_data),
    loss=loss,
    steps=1_000_000,
    batch=Batch(size=16, micro=8),
    checkpoint=Checkpoint(every=20, keep=2),
    evaluation=Evaluation(samples=0),
)
