"""Attempt after attempt until the run has ended: submit, follow, pass signals on, start again what was lost."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.backend import Backend
from cluster.errors import ClusterError, NoCapacity
from cluster.job import Job, JobState, Situation
from cluster.local import handle_of
from cluster.preemption import STOP_SIGNALS
from cluster.topology import Topology
from launcher.disk import disk_trouble
from launcher.environment import environment
from launcher.errors import NoProgress
from launcher.recipe import Recipe
from launcher.runs import PREEMPTED_CODE, Attempt, Outcome, Run, write_json
from launcher.status import commit_count
from launcher.strategies import STRATEGIES
from launcher.watch import Display, Follower

POLL_SECONDS = 0.1
LOST_ATTEMPTS_WITHOUT_COMMIT = 3
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # between askings for machines
_TRAINING_MODULES = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "launcher.train.loop",
    "tensorboard.summary.writer.event_file_writer",
)
_PRETRAINED_MODULES = ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")
_MODULES_THAT_LOOK_AT_THE_GPU = ("peft", "bitsandbytes")  # when they are imported: the one imports the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A run that is about to start. name: what its place shows. checkpoints: the URL or path of its store.
    settings: what else its attempt's record says."""

    run: Run
    name: str
    checkpoints: str
    recipe: Recipe
    topology: Topology
    settings: Mapping[str, Any]

    def job(self, number: int) -> Job:
        """What attempt `number` asks of its backend."""
        run = self.run
        return Job(
            name=self.name,
            attempt=number,
            command=(sys.executable, "-m", "launcher.train", str(run.folder), str(number)),
            entry="launcher.on_node:train",
            run_folder=run.folder,
            folder=run.code,
            logs=run.attempt(number).logs,
            environment=_environment(self.topology),
            topology=self.topology,
            checkpoints=self.checkpoints,
            resume=self._resume(),
            grace_seconds=self.settings["grace_seconds"],
        )

    def record(self, backend: Backend) -> dict[str, object]:
        """What the record of an attempt says from its start on, but for the time."""
        return {
            "target": backend.name,
            "preload": modules_to_preload(self.recipe, self.topology.has_gpus),
            "settings": backend.settings(),
            "commits": commit_count(self.run),
            **self.settings,
        }

    def _resume(self) -> tuple[str, ...]:
        """Another machine has nothing of the attempts before, and whoever had the run before is gone."""
        words = ["resume", "--on", "local", "--takeover", "--gpus", str(self.topology.ranks_per_node)]
        words += ["--hang-seconds", str(self.settings["hang_seconds"])]
        if self.settings["grace_seconds"] is not None:
            words += ["--grace-seconds", str(self.settings["grace_seconds"])]
        return (*words, *(f"--allow-change={field}" for field in self.settings["allow_change"]))


def supervise(start: Start, backend: Backend, display: Display) -> Outcome:
    """Run attempts until one ends by itself.

    One whose machines were taken away is followed by another; so is one that was lost otherwise, if not too often
    without progress.
    """
    run = start.run
    lost, commits = 0, commit_count(run)
    with _stop_requests() as requests:
        while (attempt := _start_when_there_is_room(start, backend, requests, display)) is not None:
            _follow(run, attempt, backend, requests, display)
            outcome = attempt.outcome() or _outcome_not_written(run, attempt, requests)
            situation = backend.situation(str(attempt.record()["handle"]))
            if outcome is not None and outcome.is_refused:
                shutil.rmtree(attempt.folder)  # the run is the other one's: what it shows is not how this one ended
                return replace(outcome, log="")
            if outcome is not None and (requests or not _goes_on_after(outcome, situation)):
                return outcome
            if situation.was_taken:
                _note_cause(attempt, outcome, situation.reason)
                display.say(f"{situation.reason}; asking for other machines")
                continue
            before, commits = commits, commit_count(run)
            lost = lost + 1 if commits == before else 0
            if lost > LOST_ATTEMPTS_WITHOUT_COMMIT:
                cause = f"the node process was lost {lost} times in a row without a new commit"
                return Outcome(
                    state="FAILED", cause=cause, exit_code=NoProgress.exit_code, log=str(attempt.logs / "node-0.log")
                )
            display.say(f"the node process of attempt {attempt.number} is gone; starting attempt {attempt.number + 1}")
    cause = f"{requests[0].name}, while it waited for machines"
    return Outcome(state="PREEMPTED", cause=cause, exit_code=PREEMPTED_CODE)


def _start_when_there_is_room(
    start: Start, backend: Backend, requests: list[signal.Signals], display: Display
) -> Attempt | None:
    """The next attempt, on machines that may have to be asked for several times; None when asked to stop before."""
    pause = FIRST_PAUSE_SECONDS
    while not requests:
        try:
            return start_attempts([start], backend)[0]
        except NoCapacity as error:
            display.say(f"{backend.name}: {error}; asking again in {pause:.0f} s")
        until = time.monotonic() + pause
        while time.monotonic() < until and not requests:
            time.sleep(POLL_SECONDS)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return None


def _goes_on_after(outcome: Outcome, situation: Situation) -> bool:
    """Whether another attempt follows by itself: a preemption by its place, or a loss, was nobody's wish."""
    return outcome.state == "LOST" or (outcome.wants_another_start and situation.was_taken)


def _note_cause(attempt: Attempt, outcome: Outcome | None, reason: str) -> None:
    """The place knows better than the nodes that are left why one is gone."""
    outcome = outcome or Outcome(state="LOST", cause="", exit_code=PREEMPTED_CODE)
    attempt.write_outcome(replace(outcome, cause=reason))


def _outcome_not_written(run: Run, attempt: Attempt, requests: list[signal.Signals]) -> Outcome | None:
    """How an attempt ended that left no outcome; None when it was lost and another one can go on."""
    wrong = disk_trouble(run.folder)
    disk = f"the disk of {run.folder} {wrong}, so work since the newest commit will be done again"
    if requests:
        cause = f"{requests[0].name}, {disk if wrong else 'stopped at once'}"
        return Outcome(state="PREEMPTED", cause=cause, exit_code=PREEMPTED_CODE)
    if wrong:
        cause = f"attempt {attempt.number} has ended, and {disk}; mend that and resume"
        return Outcome(state="FAILED", cause=cause, exit_code=1)
    return None


def start_attempts(starts: Sequence[Start], backend: Backend) -> list[Attempt]:
    """Make the next attempt of each run, and submit all as one. Raises ClusterError when the place refuses them, or has
    not got the machines: then there are no attempts."""
    attempts = [_new_attempt(start, backend) for start in starts]
    jobs = [start.job(attempt.number) for start, attempt in zip(starts, attempts, strict=True)]
    try:
        handles = backend.submit(backend.render(jobs))
    except ClusterError:
        for attempt in attempts:
            shutil.rmtree(attempt.folder)
        raise
    for attempt, handle in zip(attempts, handles, strict=True):
        attempt.write_record({**attempt.record(), "handle": handle})
    here = environment(Path(starts[0].run.record()["recipe"]).parent)  # runs of one submission have one recipe
    for attempt in attempts:
        write_json(attempt.folder / "environment.json", here)
    return attempts


def _new_attempt(start: Start, backend: Backend) -> Attempt:
    launcher = {"launcher": handle_of(os.getpid())} if backend.needs_launcher else {}
    return start.run.new_attempt({"started": time.time(), **launcher, **start.record(backend)})


def _environment(topology: Topology) -> dict[str, str]:
    environment = {}
    if search_path := os.environ.get("PYTHONPATH"):  # what the user's modules or shell have put there
        environment["PYTHONPATH"] = search_path
    if topology.nodes == 1:
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # one node talks to itself: no name resolution, no firewall
    if topology.has_gpus:
        # Without it cuBLAS may add up in another order each time (cuBLAS manual, "Results reproducibility").
        environment["CUBLAS_WORKSPACE_CONFIG"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        environment["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would look for another one, and complain of not finding any
        # OpenMP threads that spin while they wait slow training 3 to 20 times as soon as another process wants a core.
        environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    return environment


def modules_to_preload(recipe: Recipe, has_gpus: bool) -> list[str]:
    modules = [*_TRAINING_MODULES, STRATEGIES[recipe.parallel.strategy].module]
    if recipe.model.name is not None:
        modules += _PRETRAINED_MODULES
    if recipe.adapter is not None and not has_gpus:
        modules += _MODULES_THAT_LOOK_AT_THE_GPU
    return modules


def _follow(run: Run, attempt: Attempt, backend: Backend, requests: list[signal.Signals], display: Display) -> None:
    """Show the attempt until it has ended. The first stop request is passed on; the second one ends it at once."""
    follower = Follower(run, attempt, display)
    handle = str(attempt.record()["handle"])
    passed_on = 0
    while backend.situation(handle).state is not JobState.ENDED:
        follower.update()
        if len(requests) > passed_on:
            passed_on = len(requests)
            if passed_on == 1:
                display.say(f"{requests[0].name}: saving, then stopping (once more to stop at once)")
                backend.stop(handle, requests[0])
            else:
                display.say("stopping at once")
                backend.kill(handle)
        time.sleep(POLL_SECONDS)
    follower.update()


@contextmanager
def _stop_requests() -> Iterator[list[signal.Signals]]:
    """The stop signals that reached the launcher, in order."""
    requests: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        requests.append(signal.Signals(number))

    previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
