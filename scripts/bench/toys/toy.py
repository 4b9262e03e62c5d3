"""The toy that the stacks of scripts/bench train: a small MLP, and 50 ms of sleep per step for a GPU's work.

A worker tells the moments of its life to the file BENCH_EVENTS, each as one line of JSON. BENCH_STEPS and
BENCH_SAVE_EVERY say how long it trains, and after how many steps it saves.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import torch

WIDTH = 512
SAMPLES_PER_RANK = 8
SAVE_EVERY = int(os.environ.get("BENCH_SAVE_EVERY", "20"))
STEPS = int(os.environ.get("BENCH_STEPS", "1_000_000"))
STEP_SECONDS = 0.05


def build() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))


def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    time.sleep(STEP_SECONDS)
    value: torch.Tensor = model(x).square().mean()
    return value


class Samples(torch.utils.data.Dataset[Any]):
    """Random inputs, as the framework wants them: bare, or under a name."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Any:
        x = torch.randn(WIDTH)
        return x if self._name is None else {self._name: x}


def tell(event: str) -> None:
    record = {"event": event, "time": time.time(), "rank": int(os.environ["RANK"]), "pid": os.getpid()}
    record["cpu_seconds"] = time.process_time()
    with open(os.environ["BENCH_EVENTS"], "a") as file:
        file.write(json.dumps(record) + "\n")
