"""Start real runs of the real command line, and look at what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.rehearsal.processes import Processes

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = (sys.executable, "-m", "launcher")
TINY = "recipes/gpt_tiny.py"
STEPS = 60
# The tiny recipe, small enough to run many times.
SMALL = (
    f"steps={STEPS}",
    "checkpoint.every=5",
    "schedule.warmup_steps=3",
    "evaluation.samples=0",
    "model.arguments.width=64",
    "model.arguments.layers=2",
    "batch.size=6",
    "batch.micro=2",
)


def small_words(ranks: int, **changed: object) -> list[str]:
    """The words that launch the small recipe on this many ranks; `changed` replaces settings, with `__` for a dot."""
    settings = dict(word.split("=", 1) for word in SMALL) | {k.replace("__", "."): str(v) for k, v in changed.items()}
    return [TINY, "--gpus", str(ranks), *(f"{key}={value}" for key, value in settings.items())]


def launch(
    *words: str, runs_dir: Path, timeout: float = 300, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *words], cwd=cwd, env=environment(runs_dir), capture_output=True, text=True, timeout=timeout
    )


def start(*words: str, runs_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCH, *words],
        cwd=REPOSITORY,
        env=environment(runs_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(script: str, argument: str, folder: Path) -> str:
    """What a Python script of the folder prints."""
    result = subprocess.run(
        [sys.executable, script, argument],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_until(launcher: subprocess.Popen[str], text: str) -> str:
    """The next line of stderr that holds the text."""
    assert launcher.stderr is not None
    said = []
    for line in launcher.stderr:
        said.append(line)
        if text in line:
            return line
    raise AssertionError(f"the launcher ended and never said {text!r}, but:\n{''.join(said)}")


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 65536)
        except OSError:
            pass


def environment(runs_dir: Path) -> dict[str, str]:
    return {**os.environ, "LAUNCH_RUNS_DIR": str(runs_dir), "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 300) -> Any:
    """The first true answer of `condition`. Fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout} s in vain for {what}")


def steps_of(run: Path) -> list[int]:
    return [record["step"] for record in json_lines(run / "metrics.jsonl")]


def wait_for_step(run: Path, step: int) -> None:
    wait_for(lambda: (steps_of(run) or [0])[-1] >= step, f"step {step} of {run.name}")


def digests(run: Path) -> dict[str, Any]:
    result = launch("checkpoints", "digest", run.name, "--json", runs_dir=run.parent)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def status(run: Path) -> dict[str, Any]:
    result = launch("status", run.name, "--json", runs_dir=run.parent)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def finish(run: Path, ranks: int) -> None:
    """Resume the run; it goes on to its end."""
    result = launch("resume", run.name, "--gpus", str(ranks), runs_dir=run.parent)
    assert result.returncode == 0, result.stderr


def assert_same_ending(run: Path, reference: Path) -> None:
    assert digests(run) == digests(reference)
    assert steps_of(run) == steps_of(reference)


def check_that_a_killed_rank_changes_nothing(words: list[str], runs_dir: Path) -> subprocess.CompletedProcess[str]:
    """Launch the words (2 ranks) twice, and kill a rank of the second run; the answer is the first launcher's."""
    whole = launch(*words, "--name", "whole", runs_dir=runs_dir)
    assert whole.returncode == 0, whole.stderr
    launcher = start(*words, "--name", "killed", runs_dir=runs_dir)
    wait_for_step(runs_dir / "killed", 12)
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    events = json_lines(runs_dir / "killed/attempts/0001/events.jsonl")
    assert [event["event"] for event in events].count("restarted") == 1
    assert digests(runs_dir / "killed") == digests(runs_dir / "whole")
    steps = steps_of(runs_dir / "killed")
    assert steps == steps_of(runs_dir / "whole") == list(range(1, len(steps) + 1))
    return whole
