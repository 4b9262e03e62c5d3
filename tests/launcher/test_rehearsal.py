from __future__ import annotations

from signal import SIGTERM, SIGUSR1, SIGUSR2

import pytest

from cluster.backend import backend_named
from launcher.rehearsal.interruptions import interruptions
from launcher.rehearsal.verdict import Ending, compare_endings, compare_on_other_ranks, compare_steps


def records(losses):
    return {i: {"loss": loss, "grad_norm": 1.0, "lr": 0.1, "samples": 8 * i} for i, loss in enumerate(losses, 1)}


def ending(losses, **digests):
    return Ending(records=records(losses), digests={"weights": "w", "optimizer": "o", "samples": "s", **digests})


WHOLE = ending([3.0, 2.0, 1.0])


def test_the_first_step_that_differs_is_named_with_both_values():
    check = compare_steps("after a kill", 1, records([9.0, 2.0, 1.0000001]), WHOLE)
    assert (check.step, check.difference) == (3, "loss 1.0000001 instead of 1.0")
    assert compare_steps("after a kill", 1, records([9.0, 2.0, 1.0]), WHOLE).is_equal


def test_equal_losses_do_not_hide_other_weights():
    check = compare_endings(ending([3.0, 2.0, 1.0], weights="x"), WHOLE)
    assert (check.step, check.difference) == (3, "other weights")


@pytest.mark.parametrize(
    ("ours", "difference"),
    [
        (ending([3.0, 2.0, 1.0001], weights="x"), ""),
        (ending([3.0, 2.0, 1.1], weights="x"), "loss 1.1 instead of 1.0"),
        (ending([3.0, 2.0, 1.0], samples="x"), "other samples"),
    ],
)
def test_on_another_number_of_ranks_samples_are_the_same_and_losses_close(ours, difference):
    assert compare_on_other_ranks("on 1 rank", 2, ours, WHOLE).difference == difference


def names(place, is_spot=False):
    return [interruption.name for interruption in interruptions(place, is_spot=is_spot)]


def test_each_place_is_rehearsed_with_what_ends_jobs_there():
    kills = ["SIGKILL to one rank", "SIGKILL to everything"]
    assert backend_named("slurm").stop_signals == (SIGUSR2, SIGTERM)
    assert backend_named("slurm", {"signal": "USR1"}).stop_signals == (SIGUSR1, SIGTERM)
    assert names([SIGUSR2, SIGTERM]) == [*kills, "SIGUSR2 to all processes", "SIGTERM to all processes"]
    assert names([SIGTERM, SIGTERM]) == [*kills, "SIGTERM to all processes"]
    assert names([], is_spot=True) == [*kills, "spot notice, 30 s"]
