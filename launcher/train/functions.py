"""Functions that a recipe names: its own model, data or loss, and the defaults."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from launcher.errors import UsageError

LossFunction = Callable[[torch.nn.Module, dict[str, Any]], tuple[torch.Tensor, torch.Tensor]]


def find_function(name: str) -> Callable[..., Any]:
    """The function `package.module:name` or `path/to/file.py:name`. Raises UsageError when there is none."""
    source, _, attribute = name.rpartition(":")
    module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UsageError(f"{source} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]


def loss_function(name: str | None) -> LossFunction:
    return next_token_loss if name is None else find_function(name)


def next_token_loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of `labels` [batch, length] (-100: no loss), which stand at the position that predicts them.

    The model gets no attention mask: batches are padded on the right, where a causal model's real tokens do not look.
    """
    labels = batch["labels"]
    output = model(input_ids=batch["input_ids"])
    logits = getattr(output, "logits", output)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return loss, (labels != -100).sum()


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name of its own; the file's folder can be imported from, as when it is run as a script."""
    name = f"_recipe_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
