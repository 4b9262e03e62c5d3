"""The machines of one job on `local_spot`: start them, and take them away.

    python -m cluster.spot.machines --nodes 2 --logs FOLDER --record FILE COMMAND ...

A machine is a node process in a session of its own, with a metadata server. One that is taken away is killed with all
that runs on it. Then the job is over: the others are asked to stop, and end soon after.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from cluster.allocation import given_to
from cluster.preemption import STOP_SIGNALS, stop_signals_held
from cluster.processes import die_with_parent
from cluster.spot.interruptions import Interruption, Record
from cluster.spot.metadata import MetadataServer
from cluster.spot.settings import SpotSettings

TAKEN_CODE = 75  # the exit code when machines were taken away, or said that they would be
END_SECONDS = 30.0  # for the other machines, once one is gone
_LOOK_SECONDS = 0.05
_HOST = "127.0.0.1"


class Machine:
    """One of `nodes`, at place `node` among them. `disk`: the folder for its temporary files."""

    def __init__(
        self, node: int, nodes: int, gpus: Sequence[str], command: Sequence[str], log: Path, disk: str
    ) -> None:
        self.metadata = MetadataServer()
        place = {**given_to(node, [_HOST] * nodes), "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url}
        place["TMPDIR"] = disk
        if gpus:
            place["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with open(log, "ab") as file, stop_signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.node", *command],
                env={**os.environ, **place},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
            )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def take_away(self) -> None:
        if self.exit_code() is None:  # else its number may be another one's by now
            os.killpg(self._process.pid, signal.SIGKILL)


class Taking:
    """Takes machines away as one interruption says; `record` is told when it begins."""

    def __init__(self, machines: Sequence[Machine], interruption: Interruption | None, record: Record) -> None:
        self.has_begun = False
        self._machines = machines
        self._interruption = interruption
        self._record = record
        self._started = time.monotonic()

    def go_on(self) -> None:
        if (interruption := self._interruption) is None:
            return
        seconds = time.monotonic() - self._started - interruption.after_seconds
        if seconds >= 0 and not self.has_begun:
            self.has_begun = True
            self._record.add(interruption, time.time())
            for node in interruption.nodes if interruption.notice_seconds else ():
                self._machines[node].metadata.interrupt(interruption.notice_seconds)
        if seconds >= interruption.notice_seconds:
            self._interruption = None
            for node in interruption.nodes:
                self._machines[node].take_away()


class Ending:
    """Ends the machines that are left when one is gone: it asks them to stop if one was taken away. After a crash their
    own processes find out, and tell."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._since: float | None = None

    def go_on(self, *, is_taken: bool) -> None:
        codes = [machine.exit_code() for machine in self._machines]
        left = [machine for machine, code in zip(self._machines, codes, strict=True) if code is None]
        if self._since is None and any(codes):
            self._since = time.monotonic()
            for machine in left if is_taken else ():
                machine.signal(signal.SIGTERM)
        if self._since is not None and time.monotonic() - self._since > END_SECONDS:
            for machine in left:
                machine.take_away()


def run(machines: Sequence[Machine], taking: Taking, requests: list[int]) -> int:
    """Until no machine has work left; the answer is the exit code of this process."""
    ending = Ending(machines)
    while any(machine.exit_code() is None for machine in machines):
        while requests:
            number = requests.pop(0)
            for machine in machines:
                machine.signal(number)
        taking.go_on()
        ending.go_on(is_taken=taking.has_begun)
        time.sleep(_LOOK_SECONDS)
    if taking.has_begun:
        return TAKEN_CODE
    return int(any(machine.exit_code() for machine in machines))


def main(words: Sequence[str]) -> int:
    requests: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        requests.append(number)

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    arguments = _parser().parse_args(words)
    settings = SpotSettings(seed=arguments.seed, mean_seconds=arguments.mean_seconds, trace=arguments.trace)
    record, nodes = Record(arguments.record), arguments.nodes
    interruption = settings.interruption(record.count(), nodes)
    gpus = arguments.gpus.split(",") if arguments.gpus else []
    with tempfile.TemporaryDirectory(prefix="launch-") as disk:  # what killed processes leave goes with it
        machines = [
            Machine(node, nodes, gpus[node::nodes], arguments.command, arguments.logs / f"node-{node}.log", disk)
            for node in range(nodes)
        ]
        for machine in machines:
            machine.metadata.serve()  # only now: a process that has threads is not forked
        return run(machines, Taking(machines, interruption, record), requests)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.spot.machines")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", metavar="A,B", help="those that the machines share, if any")
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--mean-seconds", type=int)
    parser.add_argument("--trace")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
