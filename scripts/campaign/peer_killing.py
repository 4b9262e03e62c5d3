"""The kill campaign for other trainers under torchrun, which are started again by hand when torchrun has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.campaign import POLL_SECONDS
from support.killing import KINDS
from support.runs_for_tests import REPOSITORY, json_lines

PEERS = Path(__file__).resolve().parent / "peers"
PROGRAMS = {"hf": ("transformers", "hf_trainer.py"), "lightning": ("lightning", "lightning_trainer.py")}
EQUAL, DIVERGED, CRASHED, FROM_SCRATCH, HUNG = OUTCOMES = (
    "equal",
    "diverged",
    "crashed",
    "restarted from scratch",
    "hung",
)
HUNG_SECONDS = 90.0
LAUNCHES_WITHOUT_A_STEP = 3
_LONGEST_WAIT_STEPS = 20


@dataclass
class Peer:
    """One run of another trainer, killed several times. `outcome` says how it ended."""

    stack: str
    folder: Path
    ranks: int
    seed: str
    outcome: str = ""
    kills: list[dict[str, Any]] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    launches: int = 0
    launched: float = 0.0

    def run(self, kills: int, expected: dict[str, str] | None) -> dict[str, str]:
        """The digests at the end; empty when it did not come to one."""
        (self.folder / "saves").mkdir(parents=True)
        self._launch()
        choose = random.Random(self.seed)
        ending: dict[str, str] = {}
        try:
            for _ in range(kills):
                if not self._is_recovered() or not self._kill(choose):
                    break
            ending = self._wait_for_end()
            is_from_scratch = self._was_from_scratch()
            self.outcome = FROM_SCRATCH if is_from_scratch else DIVERGED if expected not in (None, ending) else EQUAL
        except (TimeoutError, RuntimeError) as error:
            self.outcome = HUNG if isinstance(error, TimeoutError) else CRASHED
        finally:
            self._end()
        return ending

    def _launch(self) -> None:
        self.launches += 1
        self.launched = time.time()
        paths = [str(REPOSITORY), str(PEERS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "CAMPAIGN_EVENTS": str(self.folder / "events.jsonl"),
            "CAMPAIGN_FOLDER": str(self.folder / "saves"),
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            # Without it restarted ranks of torch 2.13 often wait for peers that are gone.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=100"]
        command = [*torchrun, f"--nproc-per-node={self.ranks}", str(PEERS / PROGRAMS[self.stack][1])]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **environment}, stdout=log, stderr=log
            )

    def _events(self) -> list[dict[str, Any]]:
        return json_lines(self.folder / "events.jsonl")

    def _steps_since(self, moment: float) -> list[dict[str, Any]]:
        known = {event["pid"] for event in self._events() if event["time"] <= moment}
        return [event for event in self._events() if event["event"] == "step" and event["pid"] not in known]

    def _is_recovered(self) -> bool:
        """Whether the run goes on after the kill before; False when it is done."""
        since = self.kills[-1]["at"] if self.kills else 0.0
        while not self._steps_since(since):
            if self._process.poll() == 0:
                return False
            self._wait_once(max(since, self.launched))
        if self.kills:
            self.recovery_seconds.append(self._steps_since(since)[0]["time"] - since)
        return True

    def _kill(self, choose: random.Random) -> bool:
        """Kill some steps further on; False when the run was done before that."""
        kind = choose.choices(list(KINDS), list(KINDS.values()))[0]
        goal = self._events()[-1].get("step", 0) + choose.randrange(1, _LONGEST_WAIT_STEPS)
        since = time.time()
        while max((event["step"] for event in self._events() if event["event"] == "step"), default=0) < goal:
            if self._process.poll() == 0:
                return False
            self._wait_once(since)
        time.sleep(choose.uniform(0, 0.1))
        processes = psutil.Process(self._process.pid).children(recursive=True)
        told = [event for event in self._events() if event["event"] in ("step", "saved")]
        self.kills.append({"kind": kind, "at": time.time(), "step": told[-1]["step"]})
        if kind == "rank":
            ranks = {event["pid"] for event in told} & {process.pid for process in processes}
            os.kill(choose.choice(sorted(ranks)), signal.SIGKILL)
        else:
            self._process.kill()
            for process in processes if kind == "everything" else []:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        return True

    def _wait_once(self, since: float) -> None:
        """Start what has ended again. Raises TimeoutError and RuntimeError when nothing is to be hoped for any more."""
        news = max([since, *(event["time"] for event in self._events()[-1:])])
        if time.time() - news > HUNG_SECONDS:
            raise TimeoutError
        if self._process.poll() not in (None, 0):
            if self.launches > LAUNCHES_WITHOUT_A_STEP + len(self.kills):
                raise RuntimeError
            self._launch()
        time.sleep(POLL_SECONDS)

    def _wait_for_end(self) -> dict[str, str]:
        since = time.time()
        while self._process.poll() != 0:
            self._wait_once(since)
        done = [event for event in self._events() if event["event"] == "done"]
        return {part: done[-1][part] for part in ("weights", "optimizer")}

    def _was_from_scratch(self) -> bool:
        """Whether it began anew although it had told of a save before the kill."""
        for kill in self.kills:
            saved = any(event["event"] == "saved" and event["time"] < kill["at"] for event in self._events())
            following = self._steps_since(kill["at"])
            if saved and following and following[0]["step"] == 1:
                return True
        return False

    def _end(self) -> None:
        if self._process.poll() is None:
            children = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for process in children:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
