"""What a batch job calls on each node: the function that is sent to it, by its name."""

from __future__ import annotations

import sys
from typing import NoReturn

from cluster.node import main as run_node


def train(run_folder: str) -> NoReturn:
    """Work on the run until it ends or has to stop; the process ends here, with the exit code of the attempt."""
    sys.exit(run_node([sys.executable, "-m", "launcher.train", run_folder]))
