"""One record per step: JSON lines, which are the truth, and TensorBoard scalars."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from launcher.runs import LineFile, Run

_HAND_OVER_SECONDS = 5.0
_TENSORBOARD_NAMES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "speed/tokens_per_second",
    "seconds_data": "seconds/data",
    "seconds_compute": "seconds/compute",
    "seconds_checkpoint": "seconds/checkpoint",
    "memory_bytes": "memory/bytes",
}


class Metrics:
    """The metrics of a run from step `start` + 1 on, written by rank 0. Records of later steps, whose work was lost,
    are removed first, so that no step is there twice; `lost` is how many.

    A full disk delays records, it does not end the run.
    """

    def __init__(self, run: Run, start: int) -> None:
        self.lost = _cut_after(run.metrics, start)
        self._records = LineFile(run.metrics)
        self._scalars = _Scalars(run.tensorboard, start)

    def add(self, record: dict[str, Any]) -> None:
        self._records.add(record)
        self._scalars.add(record["step"], {tag: record[name] for name, tag in _TENSORBOARD_NAMES.items()})

    def add_evaluation(self, step: int, perplexity: float) -> None:
        self._scalars.add(step, {"held_out/perplexity": perplexity})

    def flush(self) -> None:
        """Hand over to the operating system what TensorBoard still holds: a kill then loses no step before a commit."""
        self._scalars.flush()


class _Scalars:
    """TensorBoard's event file. The thread that writes it dies of a full disk; then a new file is begun.

    It gets the events of some seconds at once: each time it takes the GIL from training several times. They are made
    then, too: code that runs once per step is cold.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._waiting: list[Callable[[], Event]] = []
        self._since_flush: list[Callable[[], Event]] = []
        self._writer: EventFileWriter | None = None
        self._next = 0.0
        _wait_for_a_second_without_files(folder)
        # TensorBoard drops what an earlier attempt wrote about the steps that come again.
        restart = SessionLog(status=SessionLog.START)
        self._waiting.append(partial(Event, step=start + 1, wall_time=time.time(), session_log=restart))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        self._waiting.append(partial(_event, step, time.time(), scalars))
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _HAND_OVER_SECONDS
            with self._patience():
                self._write_waiting()

    def flush(self) -> None:
        with self._patience():
            self._write_waiting().flush()
            self._since_flush.clear()

    def _write_waiting(self) -> EventFileWriter:
        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder), max_queue_size=0, flush_secs=_HAND_OVER_SECONDS)
        for event in self._waiting:
            self._writer.add_event(event())
        self._since_flush += self._waiting
        self._waiting.clear()
        return self._writer

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """What was not flushed is written again, to another file, when the disk refuses it."""
        try:
            yield
        except OSError:
            self._writer = None
            self._waiting = self._since_flush + self._waiting
            self._since_flush = []


def _event(step: int, wall_time: float, scalars: Mapping[str, float]) -> Event:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    return Event(step=step, wall_time=wall_time, summary=Summary(value=values))


def _wait_for_a_second_without_files(folder: Path) -> None:
    """TensorBoard reads files in the order of their names: by the second, then by the host and the process."""
    while any(folder.glob(f"*.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _cut_after(path: Path, step: int) -> int:
    """Keep the records of steps up to `step`; the answer is how many were removed. The file is replaced: a writer that
    was taken over keeps the old one."""
    if not path.exists():
        return 0
    kept, removed = [], 0
    with open(path, "rb") as file:
        for line in file:
            if removed or not line.endswith(b"\n") or json.loads(line)["step"] > step:
                removed += 1
            else:
                kept.append(line)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return removed
