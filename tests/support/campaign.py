"""One run that is disturbed on purpose, and what must be true of it whatever happened."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from support.phases import Moment, Schedule, observe
from support.runs_for_tests import digests, json_lines, launch, small_words, start
from support.sharing import make_once

from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.reader import verify
from checkpoints.store import open_store
from launcher.rehearsal.processes import Processes
from launcher.runs import Run

POLL_SECONDS = 0.003
HANG_SECONDS = 180.0


class Trouble(Exception):
    """What must not happen did. `kind` is hang, crash, lost commit or unequal ending."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Course:
    """The settings that disturbed and undisturbed runs of a campaign share, and a folder for all of them."""

    folder: Path
    schedule: Schedule

    def words(self, ranks: int, **changed: object) -> list[str]:
        settings: dict[str, object] = {
            "steps": self.schedule.steps,
            "checkpoint__every": self.schedule.save_every,
            "evaluation__every": self.schedule.evaluate_every,
            "evaluation__samples": 16,
            "evaluation__prompt": "null",
            "batch__size": 12,
            "batch__micro": 3,
        }
        return small_words(ranks, **settings, **changed)

    def reference(self, ranks: int) -> Path:
        """The undisturbed run of this many ranks; made once."""
        run = self.folder / f"undisturbed-{ranks}"

        def train() -> None:
            result = launch(*self.words(ranks), "--name", run.name, runs_dir=self.folder, timeout=600)
            assert result.returncode == 0, result.stderr

        return make_once(run, train)


@dataclass
class Disturbed:
    """A run, its present launcher, and its processes."""

    course: Course
    name: str
    ranks: int
    changed: dict[str, object] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    launches: int = 0

    @property
    def run(self) -> Path:
        return self.course.folder / self.name

    @cached_property
    def words(self) -> list[str]:
        return [*self.course.words(self.ranks, **self.changed), *self.flags, "--name", self.name]

    def launch(self) -> subprocess.Popen[str]:
        """The same command starts the run and resumes it."""
        self._close()
        self.launches += 1
        self.launcher = start(*self.words, runs_dir=self.course.folder)
        return self.launcher

    def look(self) -> Moment:
        return observe(self.run, self.course.schedule)

    def processes(self) -> dict[str, list[int]]:
        import psutil

        try:
            return Processes(self.launcher.pid).find()
        except psutil.NoSuchProcess:
            return {}

    def kill_everything(self, order: random.Random) -> None:
        """SIGKILL to the launcher and all that it has started, in any order; returns when all are gone."""
        Processes(self.launcher.pid).kill_everything(order)
        self.launcher.communicate()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + HANG_SECONDS
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise Trouble("hang", f"waited {HANG_SECONDS:.0f} s for {what}")
            time.sleep(POLL_SECONDS)
        return answer

    def wait_for_end(self) -> int:
        self.wait(lambda: self.launcher.poll() is not None, "the launcher to end")
        return self.launcher.returncode

    def crash(self) -> Trouble:
        """The launcher has ended as it must not."""
        return Trouble("crash", f"exit code {self.launcher.returncode}: {self.launcher.communicate()[1][-2000:]}")

    def give_up(self) -> None:
        """Leave nothing at work, and nothing open."""
        if self.launches and self.launcher.poll() is None:
            self.kill_everything(random.Random(0))
        self._close()

    def _close(self) -> None:
        if self.launches:
            self.launcher.communicate()

    def finish(self) -> None:
        """Launch until the run is done, if it is not yet."""
        if self.launcher.poll() != 0:
            self.launch()
            if self.wait_for_end() != 0:
                raise self.crash()

    def check_commits(self) -> None:
        """Each commit that was told of is live or was retired, and what is live is intact. Nothing may be at work."""
        if (log := _log_of(self.run)) is None:
            return
        entries, damage = log.history()
        if damage:
            raise Trouble("lost commit", f"the log is damaged: {damage[0]}")
        live = entries[-1].live if entries else ()
        kept = {commit.n for commit in live}
        retired: set[object] = {n for entry in entries if entry.kind.name == "RETIRE" for n in _numbers(entry.body)}
        if lost := self._acknowledged() - kept - retired:
            raise Trouble("lost commit", f"commits {sorted(lost)} were told of, and are neither live nor retired")
        for commit in live:
            try:
                verify(log.store, commit)
            except CheckpointError as error:
                raise Trouble("lost commit", str(error)) from error

    def check_ending(self) -> None:
        """Weights, optimizer and samples are those of the undisturbed run, bit by bit; so are the losses, each once."""
        self.check_commits()
        reference = self.course.reference(self.ranks)
        ours, expected = digests(self.run), digests(reference)
        if ours != expected:
            raise Trouble("unequal ending", f"{ours} instead of {expected}")
        if _curve(self.run) != _curve(reference):
            raise Trouble("unequal ending", f"metrics: {[record[0] for record in _curve(self.run)]}, or another loss")

    def _acknowledged(self) -> set[int]:
        files = self.run.glob("attempts/*/events.jsonl")
        return {event["commit"] for file in files for event in json_lines(file) if event["event"] == "committed"}


def _numbers(body: Any) -> list[int]:
    return list(body["commits"])


def _curve(run: Path) -> list[tuple[int, float, int]]:
    return [(record["step"], record["loss"], record["samples"]) for record in json_lines(run / "metrics.jsonl")]


def _log_of(run: Path) -> CommitLog | None:
    """None when nothing can have been committed yet."""
    url = Run(run).checkpoints
    return CommitLog(open_store(url)) if "://" in url or Path(url).exists() else None


def commit_count(run: Path) -> int:
    log = _log_of(run)
    entry = log.read() if log else None
    return entry.commits if entry else 0


def newest_commit_step(run: Path) -> int:
    """0 when there is no commit."""
    log = _log_of(run)
    entry = log.read() if log else None
    return entry.live[-1].step if entry and entry.live else 0
