"""JSON from a storage that may be damaged or hostile: every value is checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeAlias

from checkpoints.errors import CorruptCheckpoint

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MOST = 2**62


def encode(value: Mapping[str, object]) -> bytes:
    """The one canonical form of a JSON object, with a line feed at its end. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


class Fields:
    """The fields of a JSON object. Each getter raises CorruptCheckpoint, naming the place and the field."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise CorruptCheckpoint(where, "not a JSON object")
        self.where = where
        self._values: dict[str, object] = value

    @classmethod
    def parse(cls, where: str, data: bytes, most_bytes: int) -> Fields:
        if len(data) > most_bytes:
            raise CorruptCheckpoint(where, f"longer than {most_bytes} bytes")
        try:
            return cls(where, json.loads(data, parse_constant=_refuse, parse_float=_finite))
        except (ValueError, RecursionError) as error:
            raise CorruptCheckpoint(where, f"not JSON ({error})") from error

    def bad(self, name: str, what: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(self.where, f"{name} {what}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def value(self, name: str) -> object:
        if name not in self._values:
            raise self.bad(name, "is missing")
        return self._values[name]

    def integer(self, name: str, least: int = 0, most: int = MOST) -> int:
        return self._integer(name, self.value(name), least, most)

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.bad(name, "is not a boolean")
        return value

    def number(self, name: str) -> float:
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.bad(name, "is not a number")
        return float(value)

    def text(self, name: str, most: int = 1024) -> str:
        value = self.value(name)
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise self.bad(name, f"is not a text of at most {most} printable characters")
        return value

    def items(self, name: str) -> list[object]:
        value = self.value(name)
        if not isinstance(value, list):
            raise self.bad(name, "is not a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        items = dict(enumerate(self.items(name)))
        inner = Fields(f"{self.where}, {name}", {str(i): item for i, item in items.items()})
        return tuple(inner.text(str(i)) for i in items)

    def integers(self, name: str, most_items: int) -> tuple[int, ...]:
        items = self.items(name)
        if len(items) > most_items:
            raise self.bad(name, f"has more than {most_items} items")
        return tuple(self._integer(name, item, 0, MOST) for item in items)

    def objects(self, name: str) -> list[Fields]:
        return [Fields(f"{self.where}, {name} {i}", item) for i, item in enumerate(self.items(name))]

    def inner(self, name: str) -> Fields:
        return Fields(f"{self.where}, {name}", self.value(name))

    def mapping(self, name: str) -> dict[str, Json]:
        """A JSON object that the caller of the save gave, as it is."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise self.bad(name, "is not a JSON object")
        return value

    def _integer(self, name: str, value: object, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(name, f"is not a whole number from {least} to {most}")
        return value
