"""What a place is asked beyond nodes and ranks, as a person writes it: `PLACE.NAME=VALUE`, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from cluster.errors import ClusterError

_WORD = re.compile(r"[A-Za-z0-9_.,:+@=&|*()\[\]!/-]+")

Reader = Callable[[str, object], object]
Settings = TypeVar("Settings")


def read(kind: type[Settings], place: str, values: Mapping[str, object], readers: Mapping[str, Reader]) -> Settings:
    """The settings of that kind, whose fields have the types that the readers give; None is as if it was not said.

    values: as a person writes them, or as `dataclasses.asdict` gives them. Raises ClusterError.
    """
    for key in values:
        if key not in readers:
            raise ClusterError(f"unknown setting {place}.{key}; {nearest_of(key, readers, f'{place}.')}")
    return kind(**{key: readers[key](f"{place}.{key}", value) for key, value in values.items() if value is not None})


def nearest_of(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Which of the known words is meant, or else all of them."""
    known = list(known)
    nearest = get_close_matches(word, known, n=1)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"there are: {', '.join(known)}"


def word(key: str, value: object) -> str:
    text = str(value)
    if not _WORD.fullmatch(text):
        raise ClusterError(f"{key}={text!r} must be one word of letters, digits and _.,:+@=&|*()[]!/-")
    return text


def matching(pattern: re.Pattern[str], remedy: str) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        text = str(value)
        if not pattern.fullmatch(text):
            raise ClusterError(f"{key}={text!r} {remedy}")
        return text

    return read


PATH = matching(re.compile(r"[A-Za-z0-9_.+@=/-]+"), "must be a path of letters, digits and _.+@=/-")
IMAGE = matching(
    re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_.,:+@=/#-]*"),
    "must be the name or the path of an image, of letters, digits and _.,:+@=/#-",
)


def one_of(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        if value not in choices:
            raise ClusterError(f"{key}={str(value)!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def number(least: int, most: int) -> Callable[[str, object], int]:
    def read(key: str, value: object) -> int:
        text = str(value)
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise ClusterError(f"{key}={text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def truth(key: str, value: object) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ClusterError(f"{key}={str(value)!r} is not true or false")
    return text == "true"


def lines(key: str, value: object) -> tuple[str, ...]:
    lines = tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    for line in lines:
        if not line.isprintable():
            raise ClusterError(f"{key}={line!r} must be one printable line; use a list for several")
    return lines
