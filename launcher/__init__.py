"""The recipe vocabulary: what a recipe file imports."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which takes a third of the time of `launch --help` to import
if TYPE_CHECKING:
    from dataclasses import replace
    from typing import Any

    from launcher.recipe import AdamW, Batch, Checkpoint, Data, Evaluation, Lora, Model, Parallel, Recipe, Schedule

__all__ = [
    "AdamW", "Batch", "Checkpoint", "Data", "Evaluation", "Lora", "Model", "Parallel", "Recipe", "Schedule", "replace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the vocabulary when a recipe asks for it: `launch --help` does not."""
    if name not in __all__:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module("dataclasses" if name == "replace" else "launcher.recipe"), name)
