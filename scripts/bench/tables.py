"""What the benchmarks print: Markdown tables, and what was measured with what."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata

PACKAGES = ("torch", "transformers", "lightning")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def spread(values: Sequence[float], digits: int) -> str:
    """Median, minimum and maximum; a dash for no values, or for ones that mean nothing (nan)."""
    if not values or math.isnan(values[0]):
        return "-"
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} - {max(values):.{digits}f}]"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join([*found, f"{os.cpu_count()} cores"])


def note(text: str) -> None:
    """Beside the table: what is under way, and how busy the machine is with other work."""
    print(f"{text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr)
