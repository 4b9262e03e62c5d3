"""Weights of a pre-trained model, of which each rank reads only what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.flat_shard import State, held_parts

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The safetensors files of a folder."""

    folder: Path

    def have(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether they hold each tensor by its name, in its shape, as plain numbers."""
        return (
            self.folder.is_dir() and {n: tuple(t.shape) for n, t in tensors.items()}.items() <= self._shapes().items()
        )

    @torch.no_grad()
    def fill(self, tensors: State) -> None:
        """Read them, in place; of one that is held in parts, the parts that this rank has."""
        from safetensors import safe_open

        held = list(held_parts(tensors))
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                for name, box, part in held:
                    if name in names:
                        part.copy_(file.get_slice(name)[box])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        from safetensors import safe_open

        shapes = {}
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    found = file.get_slice(name)
                    if found.get_dtype() in _FLOATS:
                        shapes[name] = tuple(found.get_shape())
        return shapes
