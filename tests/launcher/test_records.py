from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import DamagedRun
from launcher.records import PACE_STEPS, Records


def write(path: Path, attempts: list[int]) -> list[dict[str, Any]]:
    """A record per step, of these attempts."""
    records = [{"step": step, "loss": 1 / step, "attempt": attempt} for step, attempt in enumerate(attempts, 1)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


@given(st.lists(st.integers(1, 9), max_size=60).map(sorted))
def test_the_steps_of_an_attempt_are_those_that_reading_all_of_the_file_finds(attempts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = write(Path(folder) / "metrics.jsonl", attempts)
        found = Records(Path(folder) / "metrics.jsonl")
        assert found.last() == (records[-1] if records else None)
        for attempt in range(11):
            steps = [record["step"] for record in records if record["attempt"] == attempt]
            assert found.steps_of(attempt) == ((steps[0], steps[-1]) if steps else None)


def test_without_a_file_or_before_its_first_whole_line_there_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert Records(path).last() is None
    path.write_text('{"step": 1')
    assert Records(path).last() is None
    assert Records(path).steps_of(1) is None


def test_a_line_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [1, 1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "att')
    assert Records(tmp_path / "metrics.jsonl").steps_of(1) == (1, 2)


DAMAGE = (
    "", "[]", "7", "{", "[" * 10**5, "\x1b", '{"step": "x"}', '{"step": 1, "attempt": true, "loss": 1.0}',
    '{"step": 1, "attempt": 1, "loss": "x"}', '{"step": 1, "attempt": 1' + "0" * 30 + ', "loss": 1.0}',
)  # fmt: skip


@given(st.lists(st.integers(1, 4), max_size=20).map(sorted), st.randoms(use_true_random=False))
def test_damaged_lines_are_passed_over_wherever_they_are(attempts: list[int], random: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        records = write(path, attempts)
        lines = path.read_text().splitlines()
        for text in random.sample(DAMAGE, random.randint(1, len(DAMAGE))):
            lines.insert(random.randint(0, len(lines)), text)
        path.write_text("".join(line + "\n" for line in lines))
        found = Records(path)
        assert found.last() == (records[-1] if records else None)
        for attempt in range(6):
            steps = [record["step"] for record in records if record["attempt"] == attempt]
            assert found.steps_of(attempt) == ((steps[0], steps[-1]) if steps else None)


def test_what_is_no_file_of_lines_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        Records(path)
    path.unlink()
    write(path, [1, 1])
    os.truncate(path, 2**40)
    with pytest.raises(DamagedRun, match=r"metrics\.jsonl has a line of more than"):
        Records(path)
    with path.open("ab") as file:
        file.write(b"\n{}\n")
    with pytest.raises(DamagedRun, match=r"metrics\.jsonl has a line of more than"):
        Records(path).last()


@pytest.mark.parametrize("steps", [100, 100_000])
def test_few_records_are_read_however_long_the_run_is(tmp_path: Path, steps: int) -> None:
    class Counting(Records):
        reads = 0

        def _at(self, start: int) -> dict[str, Any]:
            self.reads += 1
            return super()._at(start)

    write(tmp_path / "metrics.jsonl", [1 + step * 5 // steps for step in range(steps)])
    found = Counting(tmp_path / "metrics.jsonl")
    assert found.steps_of(3) == (1 + steps * 2 // 5, steps * 3 // 5)
    assert found.reads < 60


def test_the_pace_is_that_of_the_newest_steps_of_the_newest_attempt(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert Records(path).seconds_per_step() is None
    seconds = [(1, 9.0)] * 5 + [(2, 8.0)] * 3 + [(2, 0.5)] * (PACE_STEPS - 1) + [(2, 2.5)]
    with path.open("w") as file:
        for step, (attempt, compute) in enumerate(seconds, 1):
            record = {"step": step, "loss": 1.0, "attempt": attempt, "seconds_compute": compute, "seconds_data": "x"}
            file.write(json.dumps(record) + "\n")
    assert Records(path).seconds_per_step() == (0.5 * (PACE_STEPS - 1) + 2.5) / PACE_STEPS
