"""A few real steps on this machine: forward, backward, save, and a restore of what was saved."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoints.log import CommitLog
from checkpoints.reader import verify
from checkpoints.store import open_store
from launcher import loading
from launcher.preflight.calibration import Scale, one_micro_batch
from launcher.rehearsal.trial import Trial
from launcher.rehearsal.verdict import records_of
from launcher.runs import Run

STEPS = 3
_MOST_SAMPLES = 2  # of a step on a laptop: more takes longer than to see that it works
_BATCH = {"batch.size", "batch.tokens", "batch.micro"}


def real_steps(source: str, words: Sequence[str], scale: Scale, tell: Callable[[str], None]) -> float:
    """Train the recipe at that scale on one device, as a run of its own: its tokens per second. What comes of it is
    told in lines for people.

    Raises RunFailed where training or the resume fails, and CorruptCheckpoint.
    """
    words = _without(words, {"steps", "stop_after", "evaluation.samples", *_laptop_keys(source, scale)})
    words += [f"steps={STEPS + 1}", "evaluation.samples=0"]
    recipe = one_micro_batch(loading.load(source, words, laptop=not scale.is_real).recipe)
    samples = recipe.batch.micro if scale.is_real else min(recipe.batch.micro, _MOST_SAMPLES)
    words = [
        *_without(words, _BATCH),
        "checkpoint.local_folder=null",
        "batch.tokens=null",
        f"batch.size={samples}",
        f"batch.micro={samples}",
    ]
    with tempfile.TemporaryDirectory(prefix="launch-steps-") as folder:
        run = Run(Path(folder) / "steps")
        with Trial(run, [source, *words, f"stop_after={STEPS}"], on_cpu=False, is_small=not scale.is_real) as trial:
            trial.start(ranks=1)
            trial.finish()
        tell(_trained(run))
        tell(_saved(run))
        speeds = [float(record["tokens_per_second"]) for step, record in records_of(run).items() if step > 1]
        with Trial(run, [source, *words, f"stop_after={STEPS + 1}"], on_cpu=False, is_small=not scale.is_real) as trial:
            trial.start(ranks=1)
            trial.finish()
            loss = records_of(run)[STEPS + 1]["loss"]
            tell(f"restored   after step {trial.resumed_after}, every byte checked; loss {loss:.3f} in the next step")
    return statistics.median(speeds)


def _laptop_keys(source: str, scale: Scale) -> set[str]:
    """What the recipe makes smaller for a laptop; the words of a launch on a cluster are not to undo that."""
    if scale.is_real:
        return set()
    origins = loading.load(source, (), laptop=True).origins
    return {key for key, origin in origins.items() if origin == "laptop"}


def _without(words: Sequence[str], keys: set[str]) -> list[str]:
    return [word for word in words if word.partition("=")[0] not in keys]


def _trained(run: Run) -> str:
    records = records_of(run)
    model = _last_event(run, "model")
    seconds = [record["seconds_data"] + record["seconds_compute"] for step, record in records.items() if step > 1]
    samples = records[1]["samples"]
    memory = max(record["memory_bytes"] for record in records.values())
    where = f"on {model['device']} in {model['precision']}"
    return (
        f"trained    {STEPS} steps of {samples} samples {where}: loss {records[1]['loss']:.3f}, then "
        f"{records[STEPS]['loss']:.3f}; {statistics.median(seconds):.2f} s a step, {memory / 2**30:.1f} GiB at most"
    )


def _last_event(run: Run, kind: str) -> dict[str, Any]:
    return [event for event in run.attempts()[-1].read_events() if event["event"] == kind][-1]


def _saved(run: Run) -> str:
    """Raises CorruptCheckpoint."""
    saved = _last_event(run, "committed")
    log = CommitLog(open_store(run.checkpoints))
    entry = log.read()
    assert entry is not None
    verify(log.store, entry.live[-1])
    return f"saved      {saved['bytes'] / 1e6:.1f} MB in {saved['seconds']:.1f} s, and read back: intact"
