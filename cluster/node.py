"""What runs once on each node: it turns signals into the notice and starts the node's command.

    python -m cluster.node COMMAND ...

It imports nothing heavy, so that a signal in the first milliseconds of a job is already a notice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from cluster.preemption import Notice, handle_signals, stop_signals_held
from cluster.processes import die_with_parent


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="launch-") as scratch:
        notice = Notice(Path(scratch) / "notice")
        handle_signals(notice)
        with stop_signals_held():
            child = subprocess.Popen(
                command,
                env={**os.environ, **notice.environment()},
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
            )
        _watch_cloud(notice)
        code = child.wait()
    if code < 0:
        print(f"the trainer on this node was ended by {signal.Signals(-code).name}", file=sys.stderr)
        return 128 - code  # as a shell tells it
    return code


def _watch_cloud(notice: Notice) -> None:
    from cluster.interruption import this_cloud, watch_cloud  # not above: the handlers of signals come first

    if (cloud := this_cloud()) is not None:
        watch_cloud(cloud, notice)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
