"""A small decoder-only transformer (pre-norm, learned positions, tied embeddings), for training from scratch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        expanded = functional.gelu(self.up(self.feed_forward_norm(x)))
        return torch.add(x, self.down(expanded))


class GPT(nn.Module):
    """Maps token ids [batch, length] to logits [batch, length, vocabulary]."""

    def __init__(self, *, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def byte_gpt(*, context: int, width: int, layers: int, heads: int) -> GPT:
    """A GPT whose tokens are bytes."""
    return GPT(vocabulary=256, context=context, width=width, layers=layers, heads=heads)


@torch.no_grad()
def complete_bytes(model: GPT, prompt: str, tokens: int) -> str:
    """A continuation of `prompt`, byte by byte, drawn with the same random numbers every time."""
    context = model.positions.num_embeddings
    device = model.tokens.weight.device
    random = torch.Generator(device).manual_seed(0)
    ids = torch.tensor([list(prompt.encode())], device=device)
    for _ in range(tokens):
        chances = torch.softmax(model(ids[:, -context:])[:, -1] / 0.7, dim=-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=random)], dim=1)
    return bytes(ids[0].tolist()[len(prompt.encode()) :]).decode("ascii", errors="replace").replace("\ufffd", "?")
