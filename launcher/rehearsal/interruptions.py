"""What ends jobs at a place, done to a run on this machine."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cluster.preemption import Mark, Notice
from launcher.rehearsal.processes import Processes

SHORTEST_NOTICE_SECONDS = 30.0  # of the clouds: see `cluster.interruption`


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """`deliver` does it.

    spares_launcher: the attempt goes on by itself. lets_save: no step that was completed may be lost.
    notice_seconds: everything is killed so long after it.
    """

    name: str
    deliver: Callable[[Processes, random.Random], None]
    spares_launcher: bool = False
    lets_save: bool = False
    notice_seconds: float | None = None


def interruptions(signals: Iterable[signal.Signals], *, is_spot: bool) -> tuple[Interruption, ...]:
    """Of a place that asks jobs to stop by these signals. Those that let the run save come last."""
    asked = [
        Interruption(name=f"{number.name} to all processes", deliver=partial(_signal, number), lets_save=True)
        for number in dict.fromkeys(signals)
    ]
    if is_spot:
        name = f"spot notice, {SHORTEST_NOTICE_SECONDS:.0f} s"
        asked.append(
            Interruption(name=name, deliver=_give_notice, lets_save=True, notice_seconds=SHORTEST_NOTICE_SECONDS)
        )
    return (
        Interruption(name="SIGKILL to one rank", deliver=_kill_rank, spares_launcher=True),
        Interruption(name="SIGKILL to everything", deliver=Processes.kill_everything),
        *asked,
    )


def _signal(number: signal.Signals, processes: Processes, _order: random.Random) -> None:
    os.killpg(processes.find()["node"][0], number)


def _kill_rank(processes: Processes, order: random.Random) -> None:
    os.kill(order.choice(processes.find()["rank"]), signal.SIGKILL)


def _give_notice(processes: Processes, _order: random.Random) -> None:
    """As the node process does when its cloud tells it."""
    import psutil

    notice = Notice.from_environment(psutil.Process(processes.find()["agent"][0]).environ())
    notice.set_end(Mark(time.monotonic() + SHORTEST_NOTICE_SECONDS, f"in {SHORTEST_NOTICE_SECONDS:.0f} s"))
    notice.give("this spot machine will be taken away")
