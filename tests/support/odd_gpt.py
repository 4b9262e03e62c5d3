"""A byte-level GPT with what sharding could stumble over."""

from __future__ import annotations

import torch
from torch import nn

from launcher.train.gpt import byte_gpt


class OddGPT(nn.Module):
    """Two numbers that no three ranks can share, a buffer that belongs to the state, and one that does not."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.gpt = byte_gpt(context=32, width=width, layers=layers, heads=2)
        self.gains = nn.Parameter(torch.tensor([1.0, 0.5]))
        self.register_buffer("temperature", torch.tensor([1.25]))
        self.register_buffer("halves", torch.tensor([0.5, 1.0]), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.gpt(input_ids) * (self.gains * self.halves).sum() / self.temperature


def odd_gpt(*, width: int, layers: int) -> OddGPT:
    return OddGPT(width, layers)
