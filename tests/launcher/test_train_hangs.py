"""Who hangs, by a clock that the test moves; and what ranks show, by real processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
from support.runs_for_tests import wait_for

from launcher.cli import parse_words
from launcher.errors import UsageError
from launcher.pace import Pace, stragglers
from launcher.train.hangs import Hang, HangDetector
from launcher.train.pulse import Phase, Pulse, Pulses, Sight


class Ranks:
    """Two ranks that step each second, looked at twice a second, until something is changed."""

    def __init__(self, detector: HangDetector) -> None:
        self.detector = detector
        self.now = 0.0
        self.step = 1
        self.sights = [
            Sight(rank=rank, pid=1, state="S", phase=Phase.STEPPING, step=1, progress=1, beats=1, collectives=1)
            for rank in (0, 1)
        ]

    def steps(self, count: int, seconds: float = 1.0) -> Hang | None:
        for _ in range(count):
            hang = self.wait(seconds)
            if hang is not None:
                return hang
            self.step += 1
            self.sights = [
                replace(sight, step=self.step, progress=self.step, collectives=2 * self.step) for sight in self.sights
            ]
        return None

    def wait(self, seconds: float, silent: tuple[int, ...] = ()) -> Hang | None:
        """Nobody makes progress; all but the silent ranks beat."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            self.sights = [s if s.rank in silent else replace(s, beats=s.beats + 1) for s in self.sights]
            hang = self.detector.look(self.sights, self.now)
            if hang is not None:
                return hang
        return None

    def change(self, rank: int, **values: object) -> None:
        self.sights[rank] = replace(self.sights[rank], **values)  # type: ignore[arg-type]


@pytest.fixture
def ranks() -> Ranks:
    ranks = Ranks(HangDetector(20))
    assert ranks.steps(10) is None
    return ranks


def test_a_stopped_rank_is_named_before_30_seconds_in_any_phase(ranks):
    for phase in Phase:
        ranks.detector.begin(0)
        ranks.change(1, state="T", phase=phase)
        hang = ranks.wait(25, silent=(1,))
        assert hang is not None
        assert hang.rank == 1
        assert hang.cause.startswith("stopped")


def test_a_rank_whose_python_does_not_run_is_told_from_those_that_wait_for_it(ranks):
    ranks.change(1, state="R")
    hang = ranks.wait(25, silent=(1,))
    assert hang is not None
    assert hang.rank == 1
    assert "holds the GIL" in hang.cause
    assert hang.ranks[0] == "waits for other ranks"


def test_the_rank_that_has_not_joined_is_told_from_those_that_wait_for_it(ranks):
    ranks.change(0, collectives=ranks.sights[0].collectives + 1)
    hang = ranks.wait(25)
    assert hang is not None
    assert hang.rank == 1
    assert hang.cause == "has not joined the collective that other ranks wait in for 20 s at step 12"


def test_ranks_that_all_wait_for_each_other_are_ended_too(ranks):
    hang = ranks.wait(25)
    assert hang is not None
    assert hang.cause == "no progress, and no rank is behind the others for 20 s at step 12"


def test_a_held_gil_is_named_in_time_although_steps_take_minutes(ranks):
    assert ranks.steps(1, 19) is None
    assert ranks.steps(1, 50) is None
    assert ranks.steps(1, 140) is None
    hang = ranks.wait(25, silent=(1,))
    assert hang is not None
    assert hang.rank == 1


def test_the_first_step_teaches_how_long_steps_take():
    ranks = Ranks(HangDetector(20))
    for phase, seconds in ((Phase.STARTING, 500), (Phase.FIRST_STEP, 60)):
        for rank in (0, 1):
            ranks.change(rank, phase=phase, progress=ranks.sights[rank].progress + 1)
        assert ranks.wait(seconds) is None
    for rank in (0, 1):
        ranks.change(rank, phase=Phase.STEPPING, progress=ranks.sights[rank].progress + 1)
    assert ranks.wait(150) is None
    assert ranks.wait(50) is not None


def test_steps_may_take_three_times_as_long_as_the_longest_so_far(ranks):
    assert ranks.steps(1, 19) is None
    assert ranks.steps(5) is None
    assert ranks.steps(1, 55) is None
    assert ranks.wait(170) is not None


def test_ranks_may_wait_for_the_evaluation_of_another_and_learn_nothing_from_it(ranks):
    ranks.change(0, phase=Phase.EVALUATING, progress=100)
    assert ranks.wait(600) is None
    ranks.change(0, phase=Phase.STEPPING, progress=101)
    assert ranks.steps(10) is None
    assert ranks.wait(25) is not None


def test_a_short_stop_is_no_hang_and_teaches_nothing(ranks):
    ranks.change(1, state="T")
    assert ranks.wait(15, silent=(1,)) is None
    ranks.change(1, state="S")
    assert ranks.steps(5) is None
    assert ranks.wait(25, silent=(1,)) is not None


def test_a_first_step_may_take_long(ranks):
    ranks.detector.begin(0)
    for rank in (0, 1):
        ranks.change(rank, phase=Phase.STARTING)
    assert ranks.wait(1500) is None


def test_patience_doubles_where_an_alarm_was_followed_by_no_commit(ranks):
    ranks.detector.begin(1)
    assert ranks.steps(2) is None
    assert ranks.wait(38) is None
    assert ranks.wait(5) is not None


def test_nothing_hangs_for_a_detector_that_is_switched_off():
    ranks = Ranks(HangDetector(math.inf))
    ranks.change(1, state="T")
    assert ranks.wait(10_000, silent=(1,)) is None


def _show_pulse(path: str) -> None:
    pulse = Pulse(path, 1, 7)
    for step in range(1, 4):
        pulse.step_done(step, 0.25)
    signal.pause()


def test_a_pulse_is_seen_from_another_process_stopped_or_dead():
    pulses = Pulses(2)
    rank = multiprocessing.get_context("spawn").Process(target=_show_pulse, args=(pulses.path,))
    rank.start()
    assert rank.pid is not None
    [sight] = wait_for(lambda: [s for s in pulses.read() if s.step == 3 and s.beats], "the third step")
    assert (sight.rank, sight.pid, sight.phase, sight.is_stopped) == (7, rank.pid, Phase.STEPPING, False)
    assert pulses.own_seconds() == {7: 0.25}
    beats = sight.beats
    wait_for(lambda: pulses.read()[0].beats > beats, "a beat")
    os.kill(rank.pid, signal.SIGSTOP)
    wait_for(lambda: pulses.read()[0].is_stopped, "the stop")
    rank.kill()
    rank.join()
    assert pulses.read() == []


def test_a_straggler_is_slower_than_one_and_a_half_times_the_median():
    def named(*seconds: float) -> list[tuple[int, float]]:
        paces = [Pace(rank=rank, host="vm", seconds=value) for rank, value in enumerate(seconds)]
        return [(found.rank, found.ratio) for found in stragglers(paces)]

    assert named() == []
    assert named(1.0) == []
    assert named(1.0, 1.4) == []
    assert named(2.0, 1.0) == [(0, 2.0)]
    assert named(1.0, 1.6, 1.0, 3.0) == [(3, 3.0), (1, 1.6)]


def test_the_patience_is_set_by_a_flag_that_is_checked():
    assert parse_words(["recipe.py"])[1].hang_seconds == 20
    assert parse_words(["resume", "run", "--hang-seconds", "0"])[1].hang_seconds == 0
    with pytest.raises(UsageError, match="--hang-seconds"):
        parse_words(["recipe.py", "--hang-seconds", "soon"])
