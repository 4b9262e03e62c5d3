"""The records of a run's metrics, found without reading all of them."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any


class Records:
    """The whole lines that `metrics.jsonl` had when this was made. The attempts follow one another in it."""

    def __init__(self, path: Path) -> None:
        self._data: mmap.mmap | bytes = b""
        if path.exists() and path.stat().st_size:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._end = self._data.rfind(b"\n") + 1

    def last(self) -> dict[str, Any] | None:
        return self._before(self._end)

    def steps_of(self, attempt: int) -> tuple[int, int] | None:
        """The first and the last step that are left of an attempt; None when there are none."""
        start, end = self._start_of(attempt), self._start_of(attempt + 1)
        last = self._before(end)
        return None if start == end or last is None else (self._at(start)["step"], last["step"])

    def _start_of(self, attempt: int) -> int:
        """The byte where the records of this attempt, or of the one after it, start."""
        low, high = 0, self._end
        while low < high:
            middle = self._data.rfind(b"\n", max(low - 1, 0), (low + high) // 2) + 1
            if self._at(middle)["attempt"] < attempt:
                low = self._data.find(b"\n", middle) + 1
            else:
                high = middle
        return low

    def _at(self, start: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._data[start : self._data.find(b"\n", start)])
        return record

    def _before(self, end: int) -> dict[str, Any] | None:
        return self._at(self._data.rfind(b"\n", 0, end - 1) + 1) if end else None
