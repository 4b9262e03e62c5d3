"""A run on this machine that is started, interrupted and started again through the command line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from cluster.processes import die_with_parent
from launcher.errors import RunFailed
from launcher.records import Records
from launcher.rehearsal.interruptions import Interruption
from launcher.rehearsal.processes import Processes
from launcher.runs import PREEMPTED_CODE, Run

POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An interruption that a run had after this step, and the step after which it went on.

    left_seconds: until no process was left; None for an interruption that spares some, or that came too late.
    resumed_after, back_seconds (until the next step was completed): None when the run was over before that.
    """

    name: str
    step: int
    left_seconds: float | None = None
    resumed_after: int | None = None
    back_seconds: float | None = None


class Trial:
    """One run, and its present launcher, which is ended with this context.

    on_cpu: even where there are GPUs. is_small: at the scale of a laptop. Temporary files lie beside the run: those of
    killed processes stay.
    """

    def __init__(self, run: Run, words: Sequence[str], *, on_cpu: bool, is_small: bool = True) -> None:
        self.run = run
        self._scale = "--laptop" if is_small else "--no-laptop"
        self._on_cpu = on_cpu
        self._words = words
        self._launcher: subprocess.Popen[bytes] | None = None
        self._records: int | None = None
        self._since = 0.0

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._launcher is not None and self._launcher.poll() is None:
            self._processes.kill_everything(random.Random(0))
            self._launcher.wait()

    @property
    def log(self) -> Path:
        """What its launchers have said."""
        return self.run.folder.with_name(f"{self.run.name}.log")

    @property
    def step(self) -> int:
        """The last one that is completed."""
        record = Records(self.run.metrics).last()
        return 0 if record is None else int(record["step"])

    def start(self, ranks: int) -> None:
        """The same command starts the run and resumes it."""
        folder = self.run.folder.parent
        flags = ["--on", "local", "--gpus", str(ranks), self._scale, "--name", self.run.name, "--runs-dir", str(folder)]
        with open(self.log, "ab") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "launcher", *self._words, *flags],
                env={**os.environ, "TMPDIR": str(folder), **({"CUDA_VISIBLE_DEVICES": ""} if self._on_cpu else {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),
            )

    def stop(self) -> None:
        self._current.send_signal(signal.SIGTERM)

    def reaches(self, step: int) -> bool:
        """Wait until it has completed the step; False when it ended before. Raises RunFailed when that was not well."""
        while self.step < step:
            if self._current.poll() is not None:
                self._check_end()
                return self.step >= step
            time.sleep(POLL_SECONDS)
        return True

    def finish(self) -> None:
        """Wait until the launcher ends. Raises RunFailed unless that was well, or as it was asked to."""
        self._current.wait()
        self._check_end()

    def interrupt(self, interruption: Interruption, order: random.Random) -> Delivery:
        """Now. Returns when the run has ended, unless its launcher is spared."""
        self._records, self._since = self._file, time.monotonic()
        delivery = Delivery(name=interruption.name, step=self.step)
        if self._current.poll() is None:
            interruption.deliver(self._processes, order)
            if not interruption.spares_launcher:
                self._wait_until_left(interruption.notice_seconds, order)
                return replace(delivery, left_seconds=time.monotonic() - self._since)
        return delivery

    def go_on(self, delivery: Delivery, ranks: int) -> Delivery:
        """Resume the run, unless it does so by itself, and wait for its next step."""
        if self._current.poll() is not None:
            self._check_end()
            self.start(ranks)
        while self._file == self._records:
            if self._current.poll() is not None and self._file == self._records:
                return self._over(delivery)
            time.sleep(POLL_SECONDS)
        resumed_after = self.resumed_after
        if not self.reaches(resumed_after + 1):
            return self._over(delivery)
        return replace(delivery, resumed_after=resumed_after, back_seconds=time.monotonic() - self._since)

    @property
    def resumed_after(self) -> int:
        """The step of the commit that the present ranks have started from; 0 for none."""
        step = 0
        for event in self.run.attempts()[-1].read_events():
            step = {"restarted": 0, "resumed": event.get("step", 0)}.get(event["event"], step)
        return step

    @property
    def _current(self) -> subprocess.Popen[bytes]:
        assert self._launcher is not None
        return self._launcher

    @property
    def _processes(self) -> Processes:
        return Processes(self._current.pid)

    @property
    def _file(self) -> int | None:
        """Which file has the records: ranks that start replace it."""
        with suppress(FileNotFoundError):
            return self.run.metrics.stat().st_ino
        return None

    def _wait_until_left(self, seconds: float | None, order: random.Random) -> None:
        """As long as it may take; then everything is killed."""
        try:
            self._current.wait(seconds)
        except subprocess.TimeoutExpired:
            self._processes.kill_everything(order)
        self._current.wait()

    def _over(self, delivery: Delivery) -> Delivery:
        self._check_end()
        return delivery

    def _check_end(self) -> None:
        if (code := self._current.wait()) not in (0, PREEMPTED_CODE, -signal.SIGKILL):  # the last one is our own
            said = self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing was said"]
            raise RunFailed(f"the run does not go on (exit code {code}): {said[-1]}")
