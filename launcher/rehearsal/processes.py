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
    if _is_node(line):
        return "node"
    if "checkpoints.writer" in line:
        return "writer"
    if not _is_training(line):
        return None
    above = [parent for parent in process.parents()[:3] if _is_training(_line(parent))]  # forks keep a command line
    return ("agent", "forkserver", "rank", "data worker")[len(above)]


def _is_node(line: str) -> bool:
    return "cluster.node" in line


def _is_training(line: str) -> bool:
    is_started = "-m launcher.train" in line or "multiprocessing.forkserver" in line
    return is_started and not _is_node(line)  # whose arguments say what it starts


def _line(process: Any) -> str:
    return " ".join(process.cmdline())
