"""`launch checkpoints ls|verify|digest|pin|unpin|export RUN`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from checkpoints import reader
from checkpoints.entry import Commit
from checkpoints.errors import CorruptCheckpoint, NoIntactCheckpoint, StoreError
from checkpoints.log import CommitLog
from checkpoints.store import open_store
from launcher.errors import ExportFailed, UsageError
from launcher.places import runs_dir
from launcher.runs import Run, find_run
from launcher.status import commits_as_json, where
from launcher.terminal import answer, say


def checkpoints(arguments: argparse.Namespace) -> int:
    _check_words(arguments)
    run = find_run(arguments.run, runs_dir(arguments.runs_dir))
    run.record()
    log = CommitLog(open_store(run.checkpoints))
    return _ACTIONS[arguments.action](run, log, arguments)


def _check_words(arguments: argparse.Namespace) -> None:
    destination, action = arguments.destination, arguments.action
    if action == "export" and not destination:
        raise UsageError("launch checkpoints export RUN FOLDER needs the folder to make")
    if action != "export" and destination is not None:
        raise UsageError(f"launch checkpoints {action} takes no FOLDER {destination!r}; only export makes one")
    if action != "export" and arguments.merged:
        raise UsageError(f"launch checkpoints {action} takes no --merged; only export makes a model")


def _live(log: CommitLog) -> tuple[Commit, ...]:
    entry = log.read()
    return entry.live if entry else ()


def _stored(log: CommitLog) -> tuple[Commit, ...]:
    """Those that can be read from here."""
    return tuple(commit for commit in _live(log) if commit.is_stored)


def _chosen(run: Run, log: CommitLog, step: int | None) -> Commit:
    """The newest checkpoint in the store, or the newest one of `step`. Raises UsageError when there is none."""
    stored = _stored(log)
    for commit in reversed(stored):
        if step in (None, commit.step):
            return commit
    steps = ", ".join(str(commit.step) for commit in stored) or "none"
    raise UsageError(
        f"{run.name} has no checkpoint yet; launch status {run.name} says how far it is"
        if step is None
        else f"--step {step} has no checkpoint in {run.name}; there are: {steps}"
    )


def _ls(run: Run, log: CommitLog, arguments: argparse.Namespace) -> int:
    commits = commits_as_json(_live(log))
    if arguments.json:
        print(json.dumps(commits, indent=1))
        return 0
    for commit in commits:
        size = f"{commit['bytes'] / 1e6:>10.1f} MB"
        rest = ["pinned"] * commit["pinned"] + [where(commit)] * bool(commit["hosts"])
        answer("  ".join([f"step {commit['step']:>8}", f"commit {commit['commit']:>6}", size, *rest]))
    return 0


def _verify(run: Run, log: CommitLog, arguments: argparse.Namespace) -> int:
    """Read every byte of the checkpoints in the store and compare digests."""
    commits = _stored(log) if arguments.step is None else (_chosen(run, log, arguments.step),)
    bad = {}
    for commit in commits:
        try:
            reader.verify(log.store, commit)
        except (CorruptCheckpoint, StoreError) as error:
            bad[commit.n] = str(error)
        if not arguments.json:
            answer(f"step {commit.step}: {bad.get(commit.n, 'intact')}")
    if arguments.json:
        print(
            json.dumps(
                [{"step": c.step, "is_intact": c.n not in bad, "reason": bad.get(c.n, "")} for c in commits], indent=1
            )
        )
    if commits and len(bad) == len(commits):
        return NoIntactCheckpoint.exit_code
    return 1 if bad else 0


def _digest(run: Run, log: CommitLog, arguments: argparse.Namespace) -> int:
    commit = _chosen(run, log, arguments.step)
    digests = reader.digests(log.store, commit)
    if arguments.json:
        print(json.dumps({"step": commit.step, **digests}, indent=1))
    else:
        for part, digest in digests.items():
            answer(f"{part:10} {digest}")
    return 0


def _pin(run: Run, log: CommitLog, arguments: argparse.Namespace) -> int:
    commit = _chosen(run, log, arguments.step)
    log.pin(commit.n, is_pinned=arguments.action == "pin")
    say(f"the checkpoint of step {commit.step} is {arguments.action}ned")
    return 0


def _export(run: Run, log: CommitLog, arguments: argparse.Namespace) -> int:
    destination = Path(arguments.destination).absolute()
    _check_destination(destination)
    commit = _chosen(run, log, arguments.step)
    say(f"exporting the checkpoint of step {commit.step}")
    command = [sys.executable, "-m", "launcher.train.export", str(run.folder), str(commit.n), str(destination)]
    command += ["merged"] if arguments.merged else []
    # With the run's own code, where its recipe's functions are; torch is imported there, not here.
    result = subprocess.run(
        command, cwd=run.code, env={**os.environ, "PYTHONPATH": str(run.code)}, stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"it exited with code {result.returncode}"])[-1]
        raise ExportFailed(reason, result.returncode)
    answer(str(destination))
    return 0


def _check_destination(destination: Path) -> None:
    """Raises UsageError unless an export can be put there."""
    there = next(path for path in (destination, *destination.parents) if os.path.exists(path))
    if not there.is_dir():
        what = "is not an empty folder" if there == destination else f"cannot be made, {there} is not a folder"
        raise UsageError(f"{destination} {what}; give a new one")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(f"{destination} cannot be written, {there} is not yours to write; give another folder")
    if there == destination and any(destination.iterdir()):
        raise UsageError(f"{destination} is not an empty folder; give a new one")


_ACTIONS = {"ls": _ls, "verify": _verify, "digest": _digest, "pin": _pin, "unpin": _pin, "export": _export}
