"""The one notice that a run should stop: a file on each node, whoever gives it.

A signal to any process of the run becomes the notice; ranks read it at every step and agree on the step to stop at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# From the notice to the end, as a rule; Kubernetes on a spot machine of Google gives its pods half of that (EC2, "Spot
# Instance interruption notices"; Compute Engine, "Preemption process"; Azure, "Scheduled Events"; GKE, "Spot VMs").
SPOT_NOTICE_SECONDS = {"AWS spot": 120.0, "Google Cloud spot": 30.0, "Azure spot": 30.0, "GKE spot": 15.0}
_PATH_VARIABLE = "LAUNCH_NOTICE"


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of this machine's `time.monotonic()`, infinite for never, and in a few words what it is or why."""

    at: float
    why: str

    def seconds_left(self) -> float:
        return self.at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Notice:
    """A symbolic link that leads nowhere and whose target says when and why to stop: it is made whole, or not at all.

    It lies on the node's own disk, so that looking for it costs microseconds, and takes no space there. Where a
    scheduler ends jobs by force, two more lie beside it: when it will, as known from the start on, and as it says after
    the notice. Another one asks for a save, because the machine may be taken away.
    """

    path: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notice:
        """The notice of this process, or of the one whose environment is given."""
        return cls(Path(environment[_PATH_VARIABLE]))

    def environment(self) -> dict[str, str]:
        return {_PATH_VARIABLE: str(self.path)}

    def give(self, reason: str) -> None:
        """The first reason stands. Safe in a signal handler."""
        _make(self.path, Mark(time.monotonic(), reason))

    def is_given(self) -> bool:
        return os.path.lexists(self.path)

    def reason(self) -> str:
        """Why to stop, and how long that may take where this is known; empty when the notice was not given."""
        given, end = _read(self.path), self.end()
        if given is None:
            return ""
        return given.why if end is None else f"{given.why} ({end.why})"

    def seconds_ago(self) -> float | None:
        """How long ago the notice was given; None when it was not."""
        given = _read(self.path)
        return None if given is None else -given.seconds_left()

    def ask_to_save(self) -> None:
        """Have the run save at the next step, once, and go on: this is no notice."""
        _make(self._beside("save"), Mark(time.monotonic(), ""))

    def is_asked_to_save(self) -> bool:
        return os.path.lexists(self._beside("save"))

    def set_limit(self, limit: Mark) -> None:
        """Tell the ranks of this node when the job ends, if nobody asks it to stop before."""
        _make(self._beside("limit"), limit)

    def limit(self) -> Mark | None:
        """None where no scheduler has a limit."""
        return _read(self._beside("limit"))

    def set_end(self, end: Mark) -> None:
        """Tell the ranks of this node when the job ends now that it was asked to stop."""
        _make(self._beside("end"), end)

    def end(self) -> Mark | None:
        """None as long as it is not known."""
        return _read(self._beside("end"))

    def _beside(self, name: str) -> str:
        return f"{self.path}.{name}"


def _make(path: str | Path, mark: Mark) -> None:
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # made already, or the node has cleaned up
        os.symlink(f"{mark.at} {mark.why}", path)


def _read(path: str | Path) -> Mark | None:
    try:
        at, _, why = os.readlink(path).partition(" ")
    except FileNotFoundError:
        return None
    return Mark(float(at), why)


def handle_signals(notice: Notice) -> None:
    """From here on a stop signal to this process gives the notice and does nothing else."""

    def give(number: int, _frame: FrameType | None) -> None:
        notice.give(signal.Signals(number).name)

    for number in STOP_SIGNALS:
        signal.signal(number, give)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextlib.contextmanager
def stop_signals_held() -> Iterator[None]:
    """Stop signals wait. A child that is started meanwhile begins with them blocked, until it handles them itself:
    without that, a signal in the moments in which it has no handlers yet would end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_stop_signals_in_forks() -> None:
    """A process that is forked from this one begins with the stop signals blocked, until it calls `watch_signals`.

    With the handlers of this one it would take the signal by which its supervisor ends it for the notice.
    """
    masks: list[set[signal.Signals | int]] = []

    def hold() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    os.register_at_fork(before=hold, after_in_parent=restore)


def watch_signals(notice: Notice, supervisor: int, leave: Callable[[], None]) -> None:
    """Like `handle_signals`, for a process that its supervisor ends by a signal too: that one calls `leave`.

    Must be called before the process has other threads: the signals are blocked in all of them, and one thread waits
    for them, because only a waiting thread learns who sent a signal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def wait() -> None:
        while True:
            info = signal.sigwaitinfo(STOP_SIGNALS)
            if info.si_pid == supervisor:
                leave()
            else:
                notice.give(signal.Signals(info.si_signo).name)

    threading.Thread(target=wait, name="signals", daemon=True).start()
