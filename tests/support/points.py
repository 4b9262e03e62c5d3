"""How many crash points the tests have tried, and how many they must try at least."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

MINIMA: dict[str, int] = json.loads((Path(__file__).parents[1] / "checkpoints" / "crash_points.json").read_text())
PROPERTY = "crash points"

CountPoints = Callable[[str, int], None]


def check_points(kind: str, number: int) -> None:
    least = MINIMA[kind]
    assert number >= least, f"{kind}: {number} points, and crash_points.json says {least}; change it if that is right"
