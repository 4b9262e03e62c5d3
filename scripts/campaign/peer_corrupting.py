"""The same flipped bits in what other ways to save have saved."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from support.attic import State, state_of
from support.damage import flip
from tables import note
from torch.distributed.checkpoint.api import CheckpointException  # to DCP a failure is no Exception

NEWS_CASES = 100
WRONG = "loaded in silence, and WRONG"


def flipped_bits(stack: str, count: int, seed: int, folder: Path) -> int:
    """Flip one bit of the file with the numbers, load, and compare. A miss: it loads, and the numbers are wrong."""
    warnings.simplefilter("ignore")
    rng, state = random.Random(seed), state_of(20, 1)
    save, load = STACKS[stack](folder)
    save(state)
    (path,) = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 2**19]
    answers: Counter[str] = Counter()
    for done in range(count):
        if done % NEWS_CASES == 0:
            note(f"{stack}: {done} of {count} flipped bits")
        with flip(path, rng):
            answers[_answer(load, state)] += 1
    for answer, n in answers.most_common():
        print(f"{stack:12} {answer:36} {n:6}")
    return 1 if answers[WRONG] else 0


def _answer(load: Callable[[], State], state: State) -> str:
    try:
        loaded = load()
    except (Exception, CheckpointException) as error:  # whatever it raises, it has found the damage
        return f"found ({type(error).__name__})"
    is_right = all(torch.equal(loaded[name], value) for name, value in state.items())
    return "loaded, and right" if is_right else WRONG


def _torch(folder: Path) -> tuple[Callable[[State], object], Callable[[], State]]:
    path = folder / "state.pt"
    return lambda state: torch.save(state, path), lambda: torch.load(path, weights_only=True)


def _safetensors(folder: Path) -> tuple[Callable[[State], object], Callable[[], State]]:
    from safetensors.torch import load_file, save_file

    path = folder / "state.safetensors"
    return lambda state: save_file(state, path), lambda: load_file(path)


def _dcp(folder: Path) -> tuple[Callable[[State], object], Callable[[], State]]:
    from torch.distributed import checkpoint

    def load() -> State:
        state = {name: torch.zeros_like(value) for name, value in state_of(20, 1).items()}
        checkpoint.load(state, checkpoint_id=folder / "dcp", no_dist=True)
        return state

    return lambda state: checkpoint.save(state, checkpoint_id=folder / "dcp", no_dist=True), load


STACKS = {"torch": _torch, "safetensors": _safetensors, "dcp": _dcp}
