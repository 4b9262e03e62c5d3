"""The records of a run's metrics, found without reading all of them."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from launcher.errors import DamagedRun
from launcher.runs import MOST_LINE_BYTES, open_regular

PACE_STEPS = 32


class Records:
    """The whole lines that `metrics.jsonl` had when this was made. The attempts follow one another in it.

    Lines that are no records, because they are torn or damaged, are passed over. Raises DamagedRun where a line would
    have no end, and OSError for what is not a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data: mmap.mmap | bytes = b""
        with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
            if os.fstat(file.fileno()).st_size:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._end = self._line_of(len(self._data))

    def last(self) -> dict[str, Any] | None:
        return next(self._back(self._end, 0), None)

    def seconds_per_step(self) -> float | None:
        """The mean of the newest steps of the newest attempt; None when there is no step."""
        newest = list(islice(self._back(self._end, 0), PACE_STEPS))
        seconds = [_seconds(record) for record in newest if record["attempt"] == newest[0]["attempt"]]
        return sum(seconds) / len(seconds) if seconds else None

    def steps_of(self, attempt: int) -> tuple[int, int] | None:
        """The first and the last step that are left of an attempt; None when there are none."""
        start, end = self._start_of(attempt), self._start_of(attempt + 1)
        first, last = next(self._forth(start, end), None), next(self._back(end, start), None)
        return None if first is None or last is None else (first[0]["step"], last["step"])

    def _start_of(self, attempt: int) -> int:
        """The byte where the records of this attempt, or of the one after it, start."""
        low, high = 0, self._end
        while low < high:
            middle = self._line_of((low + high) // 2)
            record, after = next(self._forth(middle, high), (None, high))
            if record is not None and record["attempt"] < attempt:
                low = after
            else:
                high = middle
        return low

    def _forth(self, start: int, end: int) -> Iterator[tuple[dict[str, Any], int]]:
        """The records from `start` on, each with the byte after it."""
        while start < end:
            after = self._after(start)
            if record := self._at(start):
                yield record, after
            start = after

    def _back(self, end: int, start: int) -> Iterator[dict[str, Any]]:
        """The records before `end`, the last one first."""
        while end > start:
            end = self._line_of(end - 1)
            if record := self._at(end):
                yield record

    def _at(self, start: int) -> dict[str, Any]:
        """The record in the line that starts here; empty if it is none."""
        try:
            record = json.loads(self._data[start : self._after(start)])
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and _is_a_step(record) else {}

    def _line_of(self, position: int) -> int:
        """Where the line starts that the byte at `position` is in."""
        lowest = max(position - MOST_LINE_BYTES, 0)
        before = self._data.rfind(b"\n", lowest, position)
        return before + 1 if before >= 0 or not lowest else self._refuse_line()

    def _after(self, start: int) -> int:
        end = self._data.find(b"\n", start, start + MOST_LINE_BYTES)
        return end + 1 if end >= 0 else self._refuse_line()

    def _refuse_line(self) -> NoReturn:
        raise DamagedRun(self._path, f"has a line of more than {MOST_LINE_BYTES} bytes")


def _seconds(record: dict[str, Any]) -> float:
    parts = (record.get(f"seconds_{part}") for part in ("data", "compute", "checkpoint"))
    return sum(part for part in parts if isinstance(part, float) and 0 <= part < math.inf)


def _is_a_step(record: dict[str, Any]) -> bool:
    numbers = record.get("step"), record.get("attempt")
    return all(type(n) is int and 0 < n < 2**62 for n in numbers) and isinstance(record.get("loss"), float)
