"""What the peers train: the transformer of recipes/gpt_tiny, small, and how they tell what they do."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from launcher.train.gpt import byte_gpt

STEPS = 60
SAVE_EVERY = 5
SAMPLES_PER_RANK = 4
LENGTH = 128
_TEXT = Path(__file__).resolve().parents[3] / "recipes/data/python_reference.txt"


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        self._text = torch.frombuffer(bytearray(_TEXT.read_bytes()), dtype=torch.uint8)

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._text[index * LENGTH : (index + 1) * LENGTH].long()}


def build() -> torch.nn.Module:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1)
    return byte_gpt(context=LENGTH, width=64, layers=2, heads=4)


def loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def tell(event: str, **details: object) -> None:
    record = {"event": event, "time": time.time(), "rank": int(os.environ["RANK"]), "pid": os.getpid(), **details}
    with open(os.environ["CAMPAIGN_EVENTS"], "a") as file:
        file.write(json.dumps(record) + "\n")


def tell_end(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The digests of the weights and of the optimizer's state."""
    parameters = list(model.parameters())
    moments = (
        optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq") if p in optimizer.state
    )
    tell("done", weights=_digest(parameters), optimizer=_digest(moments))


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()
