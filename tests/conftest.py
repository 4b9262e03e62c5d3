from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is no failure; and in CI the same examples are tried each time, so that red means a change did it.
settings.register_profile(
    "tests", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
