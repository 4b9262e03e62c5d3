"""What a run shows while it runs, read from its folder: the same for every target."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from launcher.disk import disk_trouble
from launcher.pace import duration
from launcher.runs import Attempt, Run, json_lines
from launcher.terminal import printable, say

PLAIN_LINE_SECONDS = 2.0
DISK_SECONDS = 1.0


class Display(Protocol):
    def say(self, line: str) -> None: ...

    def step(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class PlainDisplay:
    """Lines, for a log or a pipe: a step every few seconds, and the last one."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._clock = _Clock(steps)
        self._next = 0.0

    def say(self, line: str) -> None:
        say(line)

    def step(self, record: dict[str, Any]) -> None:
        eta = self._clock.seconds_left(record["step"])
        if time.monotonic() < self._next and record["step"] != self._steps:
            return
        self._next = time.monotonic() + PLAIN_LINE_SECONDS
        self.say(
            f"step {record['step']}/{self._steps}  loss {record['loss']:.3f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  ETA {duration(eta)}"
        )

    def close(self) -> None:
        pass


class BarDisplay:
    """A progress bar under the lines, for a terminal."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  ETA {task.fields[eta]}"),
            console=Console(stderr=True, highlight=False),
            refresh_per_second=4,  # each takes 1.3 ms from ranks that train on CPUs
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, loss="-", speed="-", eta="-", visible=False)
        self._clock = _Clock(steps)
        self._progress.start()

    def say(self, line: str) -> None:
        self._progress.console.print(printable(line), markup=False, emoji=False)

    def step(self, record: dict[str, Any]) -> None:
        self._progress.update(
            self._task,
            completed=record["step"],
            visible=True,
            loss=f"{record['loss']:.3f}",
            speed=f"{record['tokens_per_second']:,.0f}",
            eta=duration(self._clock.seconds_left(record["step"])),
        )

    def close(self) -> None:
        self._progress.stop()


class _Clock:
    """Time left, from the steps seen since it was made, or since steps had to be done again."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first = self._last = (0, 0.0)

    def seconds_left(self, step: int) -> float | None:
        now = time.monotonic()
        if not 0 < self._last[0] < step:
            self._first = step, now
        self._last = step, now
        done, seconds = step - self._first[0], now - self._first[1]
        return (self._steps - step) * seconds / done if done else None


def _clock_time(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def make_display(steps: int) -> Display:
    return BarDisplay(steps) if sys.stderr.isatty() else PlainDisplay(steps)


class Follower:
    """Shows what an attempt adds to the run folder; call `update` until the attempt has ended, and once more after."""

    def __init__(self, run: Run, attempt: Attempt, display: Display) -> None:
        self._display = display
        self._events = _Tail(attempt.events)
        self._metrics = _Tail(run.metrics, from_end=True)
        self._number = attempt.number
        self._perplexity: float | None = None
        self._disk = _DiskWatch(run.folder)
        self._saves = _SaveWatch()

    def update(self) -> None:
        for line in self._disk.news():
            self._display.say(line)
        for event in self._events.new():
            for line in self._lines(event):
                self._display.say(line)
        for record in self._metrics.new():
            if record["attempt"] == self._number:
                self._display.step(record)

    def _lines(self, event: dict[str, Any]) -> Iterator[str]:
        match event["event"]:
            case "model":
                share = event["trainable"] / event["total"]
                yield (
                    f"parameters {_count(event['total'])}, of which {_count(event['trainable'])} train ({share:.2%}); "
                    f"{event['device']}, {event['precision']}"
                )
            case "evaluated":
                before, self._perplexity = self._perplexity, event["perplexity"]
                change = f" (it was {before:.2f})" if before is not None else ""
                yield f"held-out perplexity {event['perplexity']:.2f} at step {event['step']}{change}"
            case "completed":
                yield f"at step {event['step']} it answers {event['prompt']!r} with:"
                yield from (f"    {line}" for line in event["text"].strip().split("\n"))
            case "resumed":
                yield f"continuing after step {event['step']} (commit {event['commit']})"
            case "skipped":
                yield f"commit {event['commit']} was skipped: {event['reason']}"
            case "changed" | "damaged":
                yield event["text"]
            case "committed" | "save_failed" | "save_slow" | "save_skipped" | "stored" | "upload_failed":
                yield from self._saves.lines(event)
            case "save_interval":
                steps = f"{event['steps']} step{'s' if event['steps'] > 1 else ''}"
                yield f"a checkpoint every {event['seconds']:.3g} s (about {steps}) loses least"
            case "save_late":
                yield (
                    f"no time is left for a checkpoint of step {event['step']}"
                    f" (the longest took {event['seconds']:.1f} s); leaving with the newest one"
                )
            case "restarted":
                yield f"{event['cause']}; its ranks start again from the newest commit"


class _SaveWatch:
    """Says how each save ended; of saves that fail or are skipped one after the other the first, and when it is over.

    All of them are among the events.
    """

    def __init__(self) -> None:
        self._is_failing = False
        self._missing = 0
        self._since = 0.0

    def lines(self, event: dict[str, Any]) -> Iterator[str]:
        match event["event"]:
            case "save_slow":
                since = _clock_time(event["started"])
                yield f"checkpoint of step {event['step']} is being written since {since}; training goes on"
            case "save_skipped":
                self._miss(event)
            case "save_failed":
                self._miss(event)
                if not self._is_failing:
                    yield f"checkpoint of step {event['step']} failed: {event['cause']}; training goes on"
                self._is_failing = True
            case "committed":
                size = f"{event['bytes'] / 1e6:.1f} MB in {event['seconds']:.1f} s"
                again = f"; {self._missing} since {_clock_time(self._since)} were not" if self._missing else ""
                where = f" on the disk of {', '.join(event['hosts'])}" if "hosts" in event else ""
                yield f"checkpoint of step {event['step']} committed{where} ({size}){again}"
                self._is_failing, self._missing = False, 0
            case "stored":
                yield f"checkpoint of step {event['step']} is in the store, too (copied in {event['seconds']:.1f} s)"
            case "upload_failed":
                yield f"checkpoint of step {event['step']} was not copied to the store: {event['cause']}"

    def _miss(self, event: dict[str, Any]) -> None:
        if not self._missing:
            self._since = event["time"]
        self._missing += 1


class _DiskWatch:
    """Says when the disk of a run cannot be written, which the run cannot say itself, and when it can be again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0
        self._trouble: str | None = None

    def news(self) -> Iterator[str]:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + DISK_SECONDS
        before, self._trouble = self._trouble, disk_trouble(self._folder)
        if self._trouble == before:
            return
        if self._trouble is None:
            yield "the disk has space again" if before == "is full" else "the disk can be written again"
        else:
            since = f"{self._trouble} since {_clock_time(time.time())}"
            yield f"the disk of {self._folder} {since}; training goes on, checkpoints wait for it"


class _Tail:
    """The whole JSON lines that a file gained. What a file that was replaced holds already was shown before."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._inode: int | None = None
        self._position = 0
        if from_end and path.exists():
            self._inode, self._position = path.stat().st_ino, path.stat().st_size

    def new(self) -> Iterator[dict[str, Any]]:
        try:
            file = open(self._path, "rb")  # noqa: SIM115  closed below
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if self._inode not in (None, status.st_ino):
                self._position = status.st_size
            self._inode = status.st_ino
            file.seek(self._position)
            for value, length in json_lines(file):
                self._position += length
                if value:
                    yield value


def _count(parameters: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.2f} {unit}"
    return str(parameters)
