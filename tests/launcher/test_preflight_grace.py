"""Whether a stop leaves time for a save: what it needs, what places give, and what helps."""

from __future__ import annotations

import json
import re

import pytest
from support.llamas import LORA, case

from cluster.preemption import SPOT_NOTICE_SECONDS
from launcher.cli import main
from launcher.preflight.gpus import GPUS
from launcher.preflight.grace import LEAVING_SECONDS, Budget, Notice
from launcher.preflight.report import Known, make_report

RECIPE = "recipes/llama_fsdp.py"


def budget(size="1b", known=None, **settings):
    found = make_report(case(size, "fsdp", gpus=8, **settings), GPUS["h100"], known).budget
    assert found is not None
    return found


def test_a_stop_waits_for_a_step_a_save_under_way_and_the_last_save():
    report = make_report(case("1b", "fsdp", gpus=8), GPUS["h100"])
    saves = report.saves
    by_hand = 2 * saves.save_seconds + saves.blocked_seconds + LEAVING_SECONDS
    assert report.duration.step_seconds < saves.save_seconds
    assert report.budget.needed == pytest.approx(by_hand)
    assert report.budget.needed == pytest.approx(2 * 14.83 + 1.19, abs=0.1)
    adapter = make_report(case("70b", "fsdp", gpus=8, samples=4096, micro=1, adapter=LORA), GPUS["h100"])
    assert adapter.duration.step_seconds > adapter.saves.save_seconds
    by_hand = adapter.duration.step_seconds + adapter.saves.save_seconds + adapter.saves.blocked_seconds
    assert adapter.budget.needed == pytest.approx(by_hand + LEAVING_SECONDS)


@pytest.mark.parametrize(
    ("size", "adapter", "met"),
    [
        ("1b", None, {"AWS spot"}),
        ("8b", None, set()),
        ("8b", LORA, {"AWS spot", "Google Cloud spot", "Azure spot", "GKE spot"}),
    ],
)
def test_which_clouds_give_enough_notice_depends_on_what_is_saved(size, adapter, met):
    found = budget(size, adapter=adapter)
    notices = [Notice(place=place, seconds=seconds) for place, seconds in SPOT_NOTICE_SECONDS.items()]
    assert {notice.place for notice in notices if found.is_met(notice)} == met


@pytest.mark.parametrize(("place", "seconds"), SPOT_NOTICE_SECONDS.items())
def test_the_storage_that_would_do_does(place, seconds):
    notice = Notice(place=place, seconds=seconds)
    speed = re.match(r"storage of ([\d.]+) GB/s would do", budget("8b").remedy(notice))
    assert speed is not None
    assert not budget("8b").is_met(notice)
    assert budget("8b", Known(store_speed=float(speed[1]) * 1e9)).is_met(notice)


def test_no_storage_helps_where_a_step_takes_longer_than_the_notice():
    slow = budget("70b", micro=1, length=8192, samples=4096, adapter=LORA)
    assert slow.step > 15
    assert "a step alone takes too long" in slow.remedy(Notice(place="GKE spot", seconds=15))


def plan(capsys, *words):
    assert main([RECIPE, "--plan", "--gpu", "h100", "--gpus", "8", "steps=100000", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)["grace"]


def test_a_signal_of_slurm_that_comes_too_late_is_found_and_the_remedy_helps(capsys):
    words = ["--on", "slurm", "slurm.gpus=gres"]
    (late,) = plan(capsys, *words, "slurm.signal_seconds=20")["places"]
    assert (late["place"], late["notice_seconds"], late["is_enough"]) == ("slurm", 20, False)
    (mended,) = plan(capsys, *words, late["remedy"].removeprefix("use "))["places"]
    assert mended["is_enough"]


def test_without_a_place_that_ends_runs_the_plan_looks_at_clouds(capsys):
    assert [place["place"] for place in plan(capsys)["places"]] == list(SPOT_NOTICE_SECONDS)
    (own,) = plan(capsys, "--grace-seconds", "40")["places"]
    assert (own["place"], own["notice_seconds"], own["is_enough"]) == ("--grace-seconds", 40, True)


# A step takes 2 s, a save 10 s, of which training waits 1 s; there is one each 500 s of work.
STOP = Budget(step=2, copying=1, saving=10, interval=500, bytes=10**10)


@pytest.mark.parametrize(
    ("seconds", "lost"),
    [
        (22, 0),  # 10 s for a save that has just begun, 11 s for the last one, 1 s to leave
        (21, 1),  # a second after it has begun it would be in time
        (14, 8),
        (13, 500),  # the last save alone takes 14 s, with the step
        (4, 506),  # one that is under way for less than 6 s is lost, too
    ],
)
def test_what_is_lost_depends_on_the_worst_moment_for_a_stop(seconds, lost):
    assert STOP.lost(Notice(place="here", seconds=seconds)) == lost


def test_a_launch_warns_of_a_notice_that_is_too_short(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")  # the launcher then counts on GPUs
    words = [
        RECIPE,
        "--gpus",
        "8",
        "--gpu",
        "h100",
        "--grace-seconds",
        "10",
        "--dry-run",
        "--no-steps",
        f"--runs-dir={tmp_path}",
    ]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "warning: --grace-seconds gives 10 s of notice, and a stop may take 31 s: up to 20 s of work are lost" in (
        said
    )
