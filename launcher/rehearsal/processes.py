"""The processes of a run on this machine, by what they are."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Processes:
    """Those below one launcher, whose pid this is. Raises psutil.NoSuchProcess when that is gone."""

    launcher: int

    def find(self) -> dict[str, list[int]]:
        """The pids of each kind: node, agent, forkserver, rank, data worker, writer."""
        import psutil

        kinds = ("node", "agent", "forkserver", "rank", "data worker", "writer")
        found: dict[str, list[int]] = {kind: [] for kind in kinds}
        for process in psutil.Process(self.launcher).children(recursive=True):
            try:
                kind = _kind(process)
            except psutil.NoSuchProcess:
                continue
            if kind:
                found[kind].append(process.pid)
        return found

    def kill_everything(self, order: random.Random) -> None:
        """SIGKILL to the launcher and all that it has started, in any order. All but the launcher are then gone."""
        import psutil

        launcher = psutil.Process(self.launcher)
        processes = [launcher, *launcher.children(recursive=True)]
        order.shuffle(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        processes.remove(launcher)  # whoever has started it waits for it
        psutil.wait_procs(processes, timeout=60)


def _kind(process: Any) -> str | None:
    line = _line(process)
    if "cluster.node" in line:
        return "node"
    if "checkpoints.writer" in line:
        return "writer"
    if "multiprocessing.forkserver" in line:  # those that are forked keep its command line
        forked = [parent for parent in process.parents()[:2] if "multiprocessing.forkserver" in _line(parent)]
        return ("forkserver", "rank", "data worker")[len(forked)]
    if "-m launcher.train" in line:
        return "agent"
    return None


def _line(process: Any) -> str:
    return " ".join(process.cmdline())
