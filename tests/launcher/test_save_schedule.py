"""When checkpoints are saved that the recipe leaves to the run: on a clock that the test moves."""

from __future__ import annotations

import pytest
import torch

from checkpoints.flat_shard import FlatShard
from cluster.topology import Topology
from launcher.preflight.interruptions import daly_interval
from launcher.recipe import Checkpoint, Data, Model, Recipe
from launcher.train.save_schedule import FIRST_SECONDS, EverySteps, LeastLost, schedule_of


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def schedule(clock, **changed):
    settings = {"failure_seconds": 3600, "blocked_seconds": 0.5, "durable_seconds": 2.0, **changed}
    return LeastLost(**settings, clock=clock)


def due_step(schedule, clock, step_seconds):
    """The step after which the next save is due, when steps take so long."""
    for step in range(1, 1000):
        if schedule.is_due(step, is_saving=False):
            return step
        clock.now += step_seconds
        schedule.step_taken(step_seconds)
    return None


def test_a_save_is_due_when_the_interval_of_least_loss_is_over(clock):
    wanted = daly_interval(0.5, 3600)
    step = due_step(schedule(clock), clock, 10.0)
    assert (step - 1) * 10 <= wanted + 5 < step * 10


def test_the_interval_follows_what_saves_really_take(clock):
    found = schedule(clock)
    before = found.interval_seconds
    found.save_begun(5.0)
    assert found.interval_seconds == daly_interval(5.0, 3600) > before
    found.save_ended(500.0)
    assert found.interval_seconds == 500.0  # a save ends before the next one begins


def test_one_slow_save_does_not_count_for_all(clock):
    found = schedule(clock)
    for blocked in (0.5, 0.5, 5.0):
        found.save_begun(blocked)
    assert found.blocked_seconds == pytest.approx(1.4)


def test_the_interval_in_steps_follows_what_steps_take(clock):
    found = schedule(clock)
    assert found.interval() is None
    found.step_taken(2.0)
    assert found.interval() == (found.interval_seconds, round(found.interval_seconds / 2))


def test_the_first_save_of_a_start_comes_within_minutes(clock):
    found = schedule(clock, failure_seconds=10**7)
    assert found.interval_seconds > 2 * FIRST_SECONDS
    assert due_step(found, clock, 10.0) == FIRST_SECONDS / 10 + 1
    found.save_begun(0.5)
    assert due_step(found, clock, 10.0) > 2 * FIRST_SECONDS / 10


def test_no_save_is_due_while_one_is_under_way(clock):
    found = schedule(clock)
    clock.now += 10**6
    assert found.is_due(1, is_saving=False)
    assert not found.is_due(1, is_saving=True)


def test_the_recipe_chooses_the_schedule():
    state = {"a": torch.zeros(1000), "b": FlatShard(items=torch.zeros(10), shape=(500, 2), start=0)}
    topology = Topology(nodes=2, ranks_per_node=2, has_gpus=False)

    def made(every):
        recipe = Recipe(
            model=Model(name="m"), data=Data(path="d.txt"), steps=10, checkpoint=Checkpoint(every=every)
        )  # fmt: skip
        return schedule_of(recipe, topology, state, node_hours=3.0)

    assert made(7) == EverySteps(7)
    assert [step for step in range(1, 22) if made(7).is_due(step, is_saving=True)] == [7, 14, 21]
    auto = made("auto")
    assert (auto.durable_seconds, auto.blocked_seconds) == (8000 / 1e9, 8000 / 4 / 10e9)
    assert auto.failure_seconds == 1.5 * 3600
