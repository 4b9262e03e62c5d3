"""The course of a rehearsal: a run left alone, one that is interrupted again and again, a copy of it on one rank."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.recipe import Recipe
from launcher.rehearsal.interruptions import Interruption
from launcher.rehearsal.trial import Delivery, Trial
from launcher.rehearsal.verdict import (
    Check,
    Ending,
    compare_endings,
    compare_on_other_ranks,
    compare_steps,
    ending_of,
    records_of,
)
from launcher.runs import Run
from launcher.terminal import say

RANKS = 2
_SAVE_EVERY = 3
_HELD_OUT = 2  # samples: a run that is resumed does without the evaluation before the first step
_LEAST_SECONDS = 4.0  # of steps: fast ones would be over before they can be interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is rehearsed: the recipe, as it is and as words; the folder for its runs; the seed of the moments."""

    recipe: Recipe
    source: str
    words: Sequence[str]
    folder: Path
    interruptions: Sequence[Interruption]
    seed: int

    def trial(self, name: str, settings: Mapping[str, object]) -> Trial:
        """A run with these settings where the command line says nothing else."""
        own = [f"{key}={value}" for key, value in settings.items()]
        given = {word.partition("=")[0] for word in self.words}
        words = [word for word in own if word.partition("=")[0] not in given]
        return Trial(Run(self.folder / name), [self.source, *self.words, *words], on_cpu=True)


def rehearse(course: Course) -> list[Check]:
    """Compare until something differs. Raises RunFailed when a run does not go on."""
    checks: list[Check] = []
    for check in _checks(course):
        checks.append(check)
        if not check.is_equal:
            break
    return checks


def _checks(course: Course) -> Iterator[Check]:
    settings: dict[str, object] = {
        "checkpoint.every": _SAVE_EVERY,
        "checkpoint.keep": 1,
        "checkpoint.local_folder": "null",
        "evaluation.samples": min(course.recipe.evaluation.samples, _HELD_OUT),
        "evaluation.prompt": "null",
    }
    if course.recipe.batch.size is not None:  # one sample per rank does all that many do
        settings |= {"batch.size": RANKS, "batch.micro": 1}
    with course.trial("undisturbed", settings) as trial:
        step_seconds = _leave_alone(trial, course)
        whole = ending_of(trial.run)
    settings["stop_after"] = whole.step
    with course.trial("interrupted", settings) as trial, course.trial("one-rank", settings) as fewer:
        yield from _interrupt(trial, course, whole, step_seconds, fewer.run.folder)
        say("its copy goes on on 1 rank")
        fewer.start(ranks=1)
        fewer.finish()
        start = fewer.resumed_after
        yield compare_on_other_ranks(f"on 1 rank after step {start}", start, ending_of(fewer.run), whole)


def _leave_alone(trial: Trial, course: Course) -> float:
    """Have the run do as many steps as interruptions need, or as the recipe wants. The answer: seconds per step."""
    say(f"training undisturbed on {RANKS} ranks")
    trial.start(RANKS)
    trial.reaches(1)
    since, least = time.monotonic(), _SAVE_EVERY * len(course.interruptions) + 2
    if course.recipe.stop_after is None and trial.reaches(least):
        time.sleep(max(0.0, since + _LEAST_SECONDS - time.monotonic()))
        trial.stop()
    trial.finish()
    return (time.monotonic() - since) / trial.step


def _interrupt(trial: Trial, course: Course, whole: Ending, step_seconds: float, copy: Path) -> Iterator[Check]:
    """Interrupt the run at moments spread over its first half: on a busy machine a notice takes steps to arrive.

    The copy is made when the last interruption has ended it.
    """
    moment = random.Random(course.seed)
    what, start, compared, delivery = "before any interruption", _SAVE_EVERY, 0, None
    trial.start(RANKS)
    for number, interruption in enumerate(course.interruptions):
        share = (number + moment.random()) / (2 * len(course.interruptions))
        trial.reaches(max(start + 1, int(share * whole.step)))
        time.sleep(moment.uniform(0, step_seconds))
        records = records_of(trial.run)
        came = trial.interrupt(interruption, moment)
        say(f"{interruption.name} after step {came.step} of {whole.step}")
        yield compare_steps(what, compared, records, whole, delivery)
        if number == len(course.interruptions) - 1:
            shutil.copytree(trial.run.folder, copy)
        delivery = trial.go_on(came, RANKS)
        if trouble := _trouble(interruption, delivery):
            yield Check(what=interruption.name, difference=trouble, delivery=delivery)
            return
        what, start = interruption.name, trial.resumed_after
        compared = min(start, max(records))
    trial.finish()
    ending = ending_of(trial.run)
    yield compare_steps(what, compared, ending.records, whole, delivery)
    yield compare_endings(ending, whole)


def _trouble(interruption: Interruption, delivery: Delivery) -> str:
    """Why there is nothing to compare after it; empty where there is."""
    if delivery.resumed_after is None:
        return "it came when all was done; give more steps"
    if interruption.lets_save and delivery.resumed_after < delivery.step:
        return f"it could save, and went on after step {delivery.resumed_after}"
    return ""
