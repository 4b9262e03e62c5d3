from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from support.points import PROPERTY, CountPoints, check_points

# A busy machine is no failure; and in CI the same examples are tried each time, so that red means a change did it.
settings.register_profile(
    "tests", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


# They take longest, so that they are begun first: each file is one worker's.
LONG_FILES = (
    "test_slurm_recovery.py", "test_equality.py", "test_slurm.py", "test_strategies.py", "test_qlora.py",
    "test_zero.py", "test_errors.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what tests find to tests/golden; then read it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        is_long = item.path.name in LONG_FILES and item.path.parent.name in ("cluster", "e2e")
        return LONG_FILES.index(item.path.name) if is_long else len(LONG_FILES)

    items.sort(key=place)


@pytest.fixture
def count_points(record_property: Callable[[str, object], None]) -> CountPoints:
    """Takes the number of crash points that a test has tried: it is shown at the end, and must not shrink unnoticed."""

    def count(kind: str, number: int) -> None:
        record_property(PROPERTY, [kind, number])
        check_points(kind, number)

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counted = [
        (str(value[0]), int(value[1]))
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == PROPERTY and report.when == "call"
    ]
    points = sum(number for kind, number in counted if kind != "state machine")
    operations = sum(number for kind, number in counted if kind == "state machine")
    if counted:
        terminalreporter.write_line(f"{points} crash points; {operations} operations of the state machine")
