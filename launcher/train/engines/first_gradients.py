"""A look at the first gradients of adapters: quantised or sharded layers have been seen to pass none on, in silence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from launcher.train.failures import NoGradient


def check_first_gradients(gradients: Mapping[str, torch.Tensor | None], device: torch.device) -> None:
    """Raises NoGradient, on all ranks, when an adapted layer gets no gradient, or one of zeros, on any of them.

    Layers are looked at, not matrices: the second matrix of an adapter starts as zeros, and lets none reach the first.
    """
    layers = {name: index for index, name in enumerate(sorted({_layer(name) for name in gradients}))}
    squares = torch.zeros(len(layers), dtype=torch.float64, device=device)
    for name, gradient in gradients.items():
        if gradient is not None:
            squares[layers[_layer(name)]] += gradient.double().square().sum().to(device)
    dist.all_reduce(squares)
    dead = [layer for layer, square in zip(layers, squares.tolist(), strict=True) if square == 0]
    if dead:
        remedy = "do without quantize=nf4, or use parallel.strategy=ddp"
        raise NoGradient(f"no gradient reaches {len(dead)} of {len(layers)} adapters, such as {dead[0]}; {remedy}")


def _layer(name: str) -> str:
    return name.partition(".lora_")[0]
