"""The stacks that the benchmarks of starts, restarts and goodput compare, and one run of such a stack."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).resolve().parent / "toys"
START_SECONDS = 120.0
STUCK_SECONDS = 45.0
POLL_SECONDS = 0.01
RANKS = (0, 1)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=100"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A way to train the toy. `steps_end` is false where a worker tells the start of each step instead of its end."""

    command: list[str]
    package: str = "torch"
    environment: Mapping[str, str] = field(default_factory=dict)
    steps_end: bool = True


OURS = Stack(command=[sys.executable, "-m", "launcher", str(TOYS / "recipe.py"), "--gpus", "2"], steps_end=False)
PLAIN = Stack(command=[*TORCHRUN, str(TOYS / "plain.py")])
NEW_STORE = Stack(command=PLAIN.command, environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
PEERS = {
    "HF Trainer": Stack(command=[*TORCHRUN, str(TOYS / "hf_trainer.py")], package="transformers"),
    "Lightning": Stack(command=[*TORCHRUN, str(TOYS / "lightning_trainer.py")], package="lightning"),
}


def named(stacks: Mapping[str, Stack], only: str | None) -> dict[str, Stack]:
    """The stacks of words like "ours;plain", or all; those that are not installed are left out, which is said."""
    names = list(stacks) if only is None else only.split(";")
    if unknown := set(names) - stacks.keys():
        sys.exit(f"--only: {', '.join(sorted(unknown))} is none of: {'; '.join(stacks)}")
    found = {}
    for name in names:
        package = stacks[name].package
        if importlib.util.find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed (pip install {package})", file=sys.stderr)
        else:
            found[name] = stacks[name]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Training:
    """One run of a stack."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._events = folder / "events.jsonl"
        self._seen: list[dict[str, Any]] = []
        self._position = 0
        self._runs = folder / "runs"
        (folder / "saves").mkdir()
        environment = {
            "BENCH_EVENTS": str(self._events),
            "BENCH_FOLDER": str(folder / "saves"),
            "LAUNCH_RUNS_DIR": str(self._runs),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(TOYS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            **stack.environment,
        }
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(143)
        )  # a benchmark that is stopped still ends what it started
        self.started = time.time()
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                stack.command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def first_steps(self, after: float = 0.0) -> float:
        """When the last rank has completed its first step, of the processes that were not there at `after`."""
        known = {event["pid"] for event in self._read() if event["time"] <= after}
        limit = STUCK_SECONDS if after else START_SECONDS
        return float(self._wait(lambda: self._first_steps(known), limit))

    def wait_for_save(self, after: float) -> None:
        self._wait(lambda: self._has_saved(after), START_SECONDS)

    def kill(self, rank: int) -> float:
        """When the newest process of the rank was killed."""
        victim = [event["pid"] for event in self._read() if event["rank"] == rank][-1]
        moment = time.time()
        os.kill(victim, signal.SIGKILL)
        return moment

    def is_alive(self, rank: int) -> bool:
        """Whether the newest process of the rank that told something still lives."""
        pids = [event["pid"] for event in self._read() if event["rank"] == rank]
        return bool(pids) and Path(f"/proc/{pids[-1]}").exists() and self._process.poll() is None

    def exit_code(self) -> int | None:
        return self._process.poll()

    def steps(self, rank: int) -> list[dict[str, Any]]:
        """What the rank told of its steps, by any of its processes."""
        return [event for event in self._read() if event["rank"] == rank and event["event"].endswith("step")]

    def send(self, number: signal.Signals) -> None:
        """To all its processes."""
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """Leave no process behind. The launcher's children are not in its session, but they end with it."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pid in {event["pid"] for event in self._read()}:
            with suppress(OSError):
                if str(self._events).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def _first_steps(self, known: set[int]) -> float | None:
        events = [event for event in self._read() if event["pid"] not in known and event["event"].endswith("step")]
        position = 0 if self._stack.steps_end else 1
        firsts = []
        for rank in RANKS:
            newest = [event for event in events if event["rank"] == rank]
            same = [event["time"] for event in newest if event["pid"] == newest[-1]["pid"]]
            if len(same) <= position:
                return None
            firsts.append(same[position])
        return float(max(firsts))

    def _has_saved(self, after: float) -> bool:
        told = any(event["event"] == "saved" and event["time"] > after for event in self._read())
        return told or any(
            json.loads(line)["event"] == "committed" and json.loads(line)["time"] > after
            for path in self._runs.glob("*/attempts/*/events.jsonl")
            for line in path.read_text().splitlines()
        )

    def _read(self) -> list[dict[str, Any]]:
        """All that the workers have told so far."""
        if self._events.exists():
            with open(self._events, "rb") as file:
                file.seek(self._position)
                whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._position += len(whole) + 1
                self._seen += [json.loads(line) for line in whole.splitlines()]
        return self._seen

    def _wait(self, look: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := look():
                return answer
            if self._process.poll() is not None:
                raise RuntimeError(f"it ended with {self._process.returncode}")
            time.sleep(POLL_SECONDS)
        raise TimeoutError
