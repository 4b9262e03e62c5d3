"""Some of the points that scripts/campaign/crash-points tries, one of each kind."""

from __future__ import annotations

import os
import shutil

import pytest
from support.kernel_faults import Point, try_point


@pytest.mark.skipif(shutil.which("strace") is None and "CI" not in os.environ, reason="strace is not installed")
@pytest.mark.parametrize(
    "point",
    [Point("fsync", 7, "signal=SIGKILL"), Point("linkat", 2, "signal=SIGKILL"), Point("fsync", 3, "error=EIO")],
    ids=str,
)
def test_a_real_run_that_is_hit_in_a_system_call_loses_nothing(point: Point) -> None:
    assert try_point(point) < 3, "the point was not reached"
