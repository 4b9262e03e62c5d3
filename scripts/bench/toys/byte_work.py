"""The model, the data and the loss that both loops of scripts/bench/loop train: a small GPT on random bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import toy

from launcher.train.functions import next_token_loss

ARGUMENTS = {"context": 128, "width": 192, "layers": 3, "heads": 4}
LENGTH = 128
SAMPLES_PER_RANK = 4
LR = 1e-3


def data_file() -> Path:
    return Path(os.environ["BENCH_DATA"])


def loss(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Called once per step, at its start."""
    toy.tell("starts step")
    return next_token_loss(model, batch)
