"""`--sweep KEY=A,B` and `--seeds N`: which settings the members of a group are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from cluster.backend import BACKENDS
from launcher.errors import UsageError
from launcher.overrides import parse

MOST_MEMBERS = 1000


def parse_sweeps(flags: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each key. Raises UsageError for what is not `KEY=VALUE,VALUE`, and for what is given twice."""
    sweeps: dict[str, tuple[str, ...]] = {}
    for flag in flags:
        key, separator, text = flag.partition("=")
        values = tuple(value.strip() for value in _split(text))
        if not key or not separator or not all(values):
            raise UsageError(f"--sweep {flag} has no values; write KEY=VALUE,VALUE, such as optimizer.lr=1e-4,3e-4")
        if key.partition(".")[0] in BACKENDS:
            raise UsageError(
                f"--sweep {key} is a setting of a place, the same for all members; give it without --sweep"
            )
        if key in sweeps:
            raise UsageError(f"--sweep {key} is given twice; give all its values in one")
        if twice := {value for value in values if values.count(value) > 1}:
            raise UsageError(f"--sweep {flag} has {min(twice)} twice; give it once, and use --seeds for repetitions")
        sweeps[key] = values
    return sweeps


def combinations(sweeps: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The product of the values, the last key's changing the fastest."""
    return [dict(zip(sweeps, values, strict=True)) for values in product(*sweeps.values())]


def check_sweeps(sweeps: Mapping[str, Sequence[str]], seeds: int | None, words: Sequence[str]) -> None:
    """Raises UsageError for what is given in two ways, and for more members than anybody wants."""
    for key, value in parse(words).items():
        if key in sweeps:
            raise UsageError(f"{key}={value} and --sweep {key} both give it; use one of them")
    if "seed" in sweeps and seeds is not None:
        raise UsageError(f"--sweep seed and --seeds {seeds} both give seeds; use one of them")
    count = seeds or 1
    for values in sweeps.values():
        count *= len(values)
    if count > MOST_MEMBERS:
        raise UsageError(f"--sweep and --seeds make {count} runs; use at most {MOST_MEMBERS}")


def _split(text: str) -> Iterator[str]:
    """At the commas that are in no brackets: a value may be a list."""
    start, depth = 0, 0
    for position, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            yield text[start:position]
            start = position + 1
    yield text[start:]
