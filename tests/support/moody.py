"""A byte-level GPT with a layer that it uses in every other pass, on all ranks alike."""

from __future__ import annotations

import torch
from torch import nn

from launcher.train.gpt import byte_gpt


class MoodyGPT(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.gpt = byte_gpt(context=32, width=width, layers=layers, heads=2)
        self.mood = nn.Linear(256, 256)
        self.passes = 0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = self.gpt(input_ids)
        self.passes += self.training
        return logits + self.mood(logits) if self.passes % 2 else logits


def moody_gpt(*, width: int, layers: int) -> MoodyGPT:
    return MoodyGPT(width, layers)
