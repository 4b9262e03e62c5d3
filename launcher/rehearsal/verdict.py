"""Whether a run that was interrupted is the same as one that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints.log import CommitLog
from checkpoints.reader import digests
from checkpoints.store import open_store
from launcher.rehearsal.trial import Delivery
from launcher.runs import Run, json_lines, open_regular

LOSS_TOLERANCE = 0.01  # relative, on another number of ranks
_COMPARED = ("loss", "grad_norm", "lr", "samples")

Records = Mapping[int, Mapping[str, Any]]  # by step


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a run has come to: the records of all its steps, and the digests of its last checkpoint by part."""

    records: Records
    digests: Mapping[str, str]

    @property
    def step(self) -> int:
        return max(self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was compared. difference: empty if there is none. step: the first that differs, if one does."""

    what: str
    remark: str = ""
    difference: str = ""
    step: int | None = None
    delivery: Delivery | None = None

    @property
    def is_equal(self) -> bool:
        return not self.difference


def records_of(run: Run) -> Records:
    with open_regular(run.metrics) as file:
        return {record["step"]: record for record, _ in json_lines(file) if record}


def ending_of(run: Run) -> Ending:
    """Of a run that has ended, with a commit of its last step."""
    log = CommitLog(open_store(run.checkpoints))
    entry = log.read()
    assert entry is not None
    ending = Ending(records=records_of(run), digests=digests(log.store, entry.live[-1]))
    assert entry.live[-1].step == ending.step
    return ending


def compare_steps(what: str, after: int, ours: Records, whole: Ending, delivery: Delivery | None = None) -> Check:
    """Our steps later than `after`, bit by bit."""
    steps = [step for step in ours if step > after]
    for step in steps:
        for name in _COMPARED:
            value, expected = ours[step].get(name), whole.records[step][name]
            if value != expected:
                difference = f"{name} {value} instead of {expected}"
                return Check(what=what, difference=difference, step=step, delivery=delivery)
    return Check(what=what, remark=f"steps {min(steps)} to {max(steps)} equal", delivery=delivery)


def compare_endings(ours: Ending, whole: Ending) -> Check:
    """The last checkpoints, bit by bit."""
    what = f"{', '.join(whole.digests)} after step {whole.step}"
    return _of_parts(what, ours, whole, list(whole.digests)) or Check(what=what, remark="equal")


def compare_on_other_ranks(what: str, after: int, ours: Ending, whole: Ending) -> Check:
    """Samples exactly; the losses of the steps later than `after` within LOSS_TOLERANCE."""
    if difference := _of_parts(what, ours, whole, ["samples"]):
        return difference
    largest = 0.0
    for step in range(after + 1, whole.step + 1):
        loss, expected = ours.records[step]["loss"], whole.records[step]["loss"]
        if abs(loss - expected) > LOSS_TOLERANCE * abs(expected):
            return Check(what=what, difference=f"loss {loss} instead of {expected}", step=step)
        largest = max(largest, abs(loss - expected))
    return Check(what=what, remark=f"every sample once, losses within {largest:.0e}")


def first_difference(checks: Sequence[Check]) -> Check | None:
    return next((check for check in checks if not check.is_equal), None)


def _of_parts(what: str, ours: Ending, whole: Ending, parts: Sequence[str]) -> Check | None:
    others = [part for part in parts if ours.digests.get(part) != whole.digests[part]]
    return Check(what=what, difference=f"other {' and '.join(others)}", step=whole.step) if others else None
