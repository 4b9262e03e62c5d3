"""Where runs are kept, and where they run."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.topology import Topology, local_gpu_count
from launcher.errors import UsageError


def runs_dir(flag: str | None) -> Path:
    """From `--runs-dir`, $LAUNCH_RUNS_DIR or ./runs. Raises UsageError for a URL that is not on this machine."""
    text = (os.environ.get("LAUNCH_RUNS_DIR") or "runs") if flag is None else flag
    scheme, separator, rest = text.partition("://")
    if "\0" in text or not text:
        raise UsageError(f"--runs-dir {text!r} is no folder's name; use a path or file://PATH")
    if separator and scheme != "file":
        raise UsageError(f"--runs-dir {text} is not on this machine; use a path or file://PATH")
    return Path(rest if separator else text).expanduser().absolute()


def local_topology(nodes: int, ranks_per_node: int | None) -> Topology:
    """This machine's GPUs, or CPU ranks where it has none; one rank if no number is given and there is no GPU."""
    gpus = local_gpu_count()
    if gpus and ranks_per_node and ranks_per_node > gpus:
        raise UsageError(f"--gpus {ranks_per_node} is more than this machine has ({gpus}); use --gpus {gpus} or less")
    return Topology(nodes=nodes, ranks_per_node=ranks_per_node or max(1, gpus), has_gpus=gpus > 0)
