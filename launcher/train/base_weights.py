"""Weights of a pre-trained model, of which each rank reads only what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan

from checkpoints.flat_shard import State, part_of

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

        held = create_default_local_save_plan(dict(tensors), is_coordinator=False).items
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                for item in (item for item in held if item.index.fqn in names):
                    assert item.tensor_data is not None
                    chunk = item.tensor_data.chunk
                    box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
                    part_of(tensors[item.index.fqn], item.index).copy_(file.get_slice(item.index.fqn)[box])

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
