"""The run folder: the only code that knows its file names.

run.json                     the run's id, format and recipe, and its group if it has one
config.yaml                  the frozen recipe, with the origin of each value
code/                        the code that the run uses
attempts/0001/attempt.json   where this attempt runs, and who owns it
attempts/0001/events.jsonl   what happened, one object per line
attempts/0001/outcome.json   how it ended; absent while it runs, and for ever if its machine was lost
attempts/0001/environment.json, identity.json   versions and machine; digests of data and base model
attempts/0001/failures/      what ended each rank that failed
attempts/0001/logs/          one file per rank and one per node
attempts/0001/pace/          how fast the ranks are, one file per node
attempts/0001/leader.json    where the agents of other nodes find the first one; for its user alone
slurm/                       what was submitted to Slurm, and what the batch script printed
kubernetes/, sky/, torchx/   what was submitted there
metrics.jsonl, tensorboard/  one record per step
checkpoints/                 the commit log and the saves, if run.json does not say that they are elsewhere
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

from launcher.errors import DamagedRun, UsageError
from launcher.pace import Pace

FORMAT = 1
COPIES_FORMAT = 2  # the log may tell of copies on disks of nodes, which a reader of format 1 takes for damage
PREEMPTED_CODE = 75  # the exit code of a run that was stopped and can be resumed
STOP_AFTER = "stop_after"  # the cause of an outcome that the recipe asked for
MOST_TEXT_BYTES = 16 * 2**20
MOST_LINE_BYTES = 2**20
_APPENDED = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_RUN_TYPES = {"run": str, "recipe": str, "steps": int, "group": dict}
_ATTEMPT_TYPES = {
    "target": str, "handle": str, "ranks_per_node": int, "threads_per_rank": int, "nodes": int, "micro": int,
    "precision": str, "has_gpus": bool, "start": int, "commits": int, "submission": int, "settings": dict,
    "asked_nodes": int, "launcher": str, "started": int | float,
}  # fmt: skip
_LEADER_TYPES = {"address": str, "port": int, "key": str}
_OUTCOME_TYPES = {
    "state": str,
    "cause": str,
    "exit_code": int,
    "step": int | None,
    "details": str,
    "log": str,
    "is_out_of_time": bool,
    "is_refused": bool,
}
_NUMBER = re.compile(r"[0-9]{4,9}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_run_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} is not a run name; use up to 128 letters, digits, '.', '_', '-', a letter or digit first"
        )
    return name


def write_json(path: Path, value: object, mode: int = 0o666) -> None:
    """Publish `value` at `path`: a reader sees all of it or the previous content."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n", mode)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Like `write_json`, for any text."""
    # Several machines may write to one run folder: a pid alone is no name of one's own there.
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", opener=partial(_unfollowed, mode=mode)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _unfollowed(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, mode)


def open_regular(path: Path) -> BinaryIO:
    """The file, for reading. Raises OSError for anything else under its name: a FIFO would block us for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def read_text(path: Path) -> str:
    """A text of bounded length. Raises OSError, and ValueError for what is no UTF-8."""
    with open_regular(path) as file:
        data = file.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_TEXT_BYTES} bytes", str(path))
    return data.decode()


def read_json(path: Path, types: Mapping[str, type | UnionType] = {}) -> dict[str, Any] | None:
    """The object at `path`, or None when there is none. `types`: of fields that the caller relies on, if present.

    Raises DamagedRun.
    """
    try:
        value = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedRun(path, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedRun(path, "is not a JSON object")
    for name, wanted in types.items():
        if name in value and not _is_a(value[name], wanted):
            raise DamagedRun(path, f"has a {name} that is a {type(value[name]).__name__}")
    return value


def _is_a(value: object, wanted: type | UnionType) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, wanted) and (not isinstance(value, int) or abs(value) < 2**62)


class LineFile:
    """A file of JSON lines, for appending. Each line is one write, so that lines of several processes do not mix.

    What a full disk refuses waits in memory and is written when there is room again: nothing is raised.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._waiting = bytearray()

    def add(self, value: Mapping[str, object]) -> None:
        self._waiting += (json.dumps(value, separators=(",", ":")) + "\n").encode()
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, _APPENDED, 0o644)
                size = os.fstat(self._descriptor).st_size
                if size and os.pread(self._descriptor, 1, size - 1) != b"\n":  # a writer was killed in its line
                    self._waiting[:0] = b"\n"
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]


def json_lines(file: BinaryIO) -> Iterator[tuple[dict[str, Any], int]]:
    """The whole lines of a file that may be growing, each with its length; a torn one comes as an empty object."""
    while (line := file.readline(MOST_LINE_BYTES)).endswith(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = {}
        yield value if isinstance(value, dict) else {}, len(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `state` is SUCCEEDED, PREEMPTED, FAILED, CANCELLED or LOST; `cause` is one line for people.

    LOST is one that a machine was taken from: the others have told.
    """

    state: str
    cause: str
    exit_code: int
    step: int | None = None  # the last completed step; None when not one was completed
    details: str = ""  # the traceback of the first failure
    log: str = ""  # the log file that tells more
    is_out_of_time: bool = False  # the time limit of its job ended it, and nobody else
    is_refused: bool = False  # another attempt was at work, and went on

    @property
    def wants_another_start(self) -> bool:
        """Whether a scheduler should start the run again, which nobody has asked to stop for good."""
        return self.state in ("PREEMPTED", "LOST") and self.cause != STOP_AFTER


class Events(LineFile):
    """What happens to an attempt, for whoever watches it."""

    def tell(self, kind: str, **details: object) -> None:
        self.add({"time": round(time.time(), 3), "event": kind, **details})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One job on one allocation."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def open_events(self) -> Events:
        return Events(self.events)

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Those so far, in order; none while there is no file."""
        with contextlib.suppress(FileNotFoundError), open_regular(self.events) as file:
            for event, _ in json_lines(file):
                if event:
                    yield event

    def record(self) -> dict[str, Any]:
        return read_json(self.folder / "attempt.json", _ATTEMPT_TYPES) or {}

    def environment(self) -> dict[str, Any] | None:
        """Versions and machine; None before they are known."""
        path = self.folder / "environment.json"
        record = read_json(path, {"packages": dict})
        if record is not None and "packages" not in record:
            raise DamagedRun(path, "has no packages")
        return record

    def last_sign(self) -> float | None:
        """When a process of it has written something last, in seconds since the epoch; None where none has begun."""
        written = [self.events, *self.logs.glob("*"), *self.folder.glob("pace/*")]
        return max((path.stat().st_mtime for path in written if path.exists()), default=None)

    def write_record(self, record: dict[str, object]) -> None:
        write_json(self.folder / "attempt.json", record)

    def outcome(self) -> Outcome | None:
        path = self.folder / "outcome.json"
        value = read_json(path, _OUTCOME_TYPES)
        try:
            return None if value is None else Outcome(**value)
        except TypeError as error:
            raise DamagedRun(path, f"has other fields than an outcome ({error})") from error

    def write_outcome(self, outcome: Outcome) -> None:
        write_json(self.folder / "outcome.json", asdict(outcome))

    def leader(self) -> dict[str, Any] | None:
        """Where the agent of the first node listens, and the key to it; None while it does not."""
        return read_json(self.folder / "leader.json", _LEADER_TYPES)

    def write_leader(self, leader: dict[str, object]) -> None:
        write_json(self.folder / "leader.json", leader, mode=0o600)

    def paces(self) -> list[Pace]:
        """Of all ranks that have told; empty while there are no steps."""
        return [pace for path in sorted((self.folder / "pace").glob("*.json")) for pace in _paces_in(path)]

    def write_paces(self, paces: Sequence[Pace]) -> None:
        """Those of one node, in a file that is named after its first rank. Nothing is written for no ranks."""
        if paces:
            folder = self.folder / "pace"
            folder.mkdir(exist_ok=True)
            write_json(folder / f"from-rank-{paces[0].rank}.json", {"ranks": [asdict(pace) for pace in paces]})


def _paces_in(path: Path) -> list[Pace]:
    try:
        paces = [Pace(**value) for value in (read_json(path, {"ranks": list}) or {}).get("ranks", [])]
    except TypeError as error:
        raise DamagedRun(path, f"has other fields than a pace ({error})") from error
    for pace in paces:
        if type(pace.rank) is not int or type(pace.host) is not str or type(pace.seconds) is not float:
            raise DamagedRun(path, "has a pace of another type")
        if not 0 < pace.seconds < math.inf:
            raise DamagedRun(path, f"has a pace of {pace.seconds} s")
    return paces


@dataclass(frozen=True, slots=True)
class Run:
    """A run is a folder, for life."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def checkpoints(self) -> str:
        """The URL of the checkpoint store."""
        record = read_json(self.folder / "run.json", {"checkpoints": str}) or {}
        return str(record.get("checkpoints", self.folder / "checkpoints"))

    def format_with(self, *, copies: bool) -> int:
        """The format from now on. A run that has had copies on disks of nodes stays one that has."""
        before = read_json(self.folder / "run.json") or {}
        return COPIES_FORMAT if copies or before.get("format") == COPIES_FORMAT else FORMAT

    def record(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        record = read_json(path, _RUN_TYPES)
        if record is None:
            raise UsageError(f"{self.folder} is not a run folder (it has no run.json)")
        if record.get("format") not in (FORMAT, COPIES_FORMAT):
            theirs, remedy = record.get("format"), "use the one that made it"
            ours = f"formats {FORMAT} and {COPIES_FORMAT}"
            raise UsageError(f"{self.folder} has format {theirs}; this launcher reads {ours}; {remedy}")
        if missing := [name for name in ("run", "recipe", "steps") if name not in record]:
            raise DamagedRun(path, f"lacks {' and '.join(missing)}")
        return record

    def attempts(self) -> list[Attempt]:
        folder = self.folder / "attempts"
        names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
        # A launcher that was killed while it made an attempt leaves a folder without a record: it never began.
        return [
            Attempt(folder / name)
            for name in names
            if _NUMBER.fullmatch(name) and (folder / name / "attempt.json").is_file()
        ]

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.folder / "attempts" / f"{number:04d}")

    def new_attempt(self, record: dict[str, object]) -> Attempt:
        """The next attempt; two launchers never get the same one, because the folder is made exclusively."""
        number = len(self.attempts()) + 1
        while True:
            attempt = self.attempt(number)
            try:
                attempt.logs.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        attempt.write_record({"submission": number, **record, "number": number})
        return attempt


def all_runs(runs_dir: Path) -> list[Run]:
    """The runs under `runs_dir`, by name."""
    return in_order(runs_dir.glob("[!.]*/run.json"))


def in_order(records: Iterable[Path]) -> list[Run]:
    """The runs whose `run.json` these are, by name, numbers in it by their value."""

    def key(path: Path) -> list[tuple[str, int]]:
        return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", path.parent.name)]

    return [Run(path.parent) for path in sorted(records, key=key)]


def find_run(name_or_path: str, runs_dir: Path) -> Run:
    """The run of this name under `runs_dir`, or the run folder at this path."""
    for folder in (runs_dir / name_or_path, Path(name_or_path)):
        with contextlib.suppress(OSError):  # such as a name that is too long
            if (folder / "run.json").is_file():
                run = Run(folder.resolve())
                if not run.name.isprintable():  # it becomes part of the commit log, which holds printable texts alone
                    raise UsageError(f"{run.name!r} is not a name for a run; rename the folder")
                return run
    known = [run.name for run in all_runs(runs_dir)]
    from difflib import get_close_matches

    nearest = get_close_matches(name_or_path, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "launch ls lists those there are"
    raise UsageError(f"no run {name_or_path!r} in {runs_dir}; {hint}")
