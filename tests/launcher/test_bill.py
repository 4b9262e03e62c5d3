"""What `launch status` says of GPU-hours and money, of attempts whose times are known."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from support import sky

from launcher.cli import main
from launcher.runs import Attempt, Outcome, Run

GKE = {"image": "train:1", "volume": "runs", "spot": True, "provider": "gke"}
SKY = {"accelerators": "H200", "cloud": None}
OWN = "cloud,instance,gpu,gpus,on_demand,spot,as_of,source\nours,box,h100,8,80,20,2026-11-01,our contract\n"
HOUR = 3600.0


def add_attempt(
    run: Run, hours: float, *, state: str = "PREEMPTED", gpu: str | None = "NVIDIA H100 80GB HBM3", **record: Any
) -> Attempt:
    """On two nodes with eight GPUs each, if nothing else is said; `hours` until its outcome."""
    machines = {"target": "kubernetes", "settings": GKE, "nodes": 2, "ranks_per_node": 8, "has_gpus": True}
    attempt = run.new_attempt({"handle": "runs/run-1", "started": 1000.0, **machines, **record})
    attempt.open_events().tell("model", device="cuda:0", gpu=gpu)
    attempt.write_outcome(Outcome(state=state, cause="", exit_code=0 if state == "SUCCEEDED" else 75))
    os.utime(attempt.folder / "outcome.json", (0, 1000 + hours * HOUR))
    return attempt


def told(run: Run, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], dict[str, Any]]:
    """The lines for people that speak of GPUs or money, and the whole for scripts."""
    assert main(["status", str(run.folder), *words]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert main(["status", str(run.folder), "--json", *words]) == 0
    return [line for line in lines if re.search(r"GPU|\$|not in it", line)], json.loads(capsys.readouterr().out)


def test_spot_hours_cost_what_the_dated_table_says_and_save_less_by_the_steps_done_again(run, capsys):
    add_attempt(run, 1)
    again = add_attempt(run, 2, state="SUCCEEDED")
    again.open_events().tell("lost", steps=18)
    run.metrics.write_text(json.dumps({"step": 9, "attempt": 2, "loss": 1.0, "seconds_compute": 100.0}) + "\n")
    lines, state = told(run, capsys)
    assert [attempt["gpu_hours"] for attempt in state["attempts"]] == [16, 32]
    bill = state["bill"]
    # Google sells it with one H100 each: 6.571 dollars an hour as spot machine, 10.9791 on demand.
    assert bill["gpu_hours"] == 48
    assert bill["spent_usd"] == pytest.approx(48 * 6.571)
    # Eighteen steps of 100 s on 16 GPUs are half an hour of them, which nobody would have paid for on demand.
    assert bill["on_demand_usd"] == pytest.approx((48 - 8) * 10.9791)
    assert bill["saved_usd"] == pytest.approx(40 * 10.9791 - 48 * 6.571)
    assert lines[0].endswith("PREEMPTED after 1:00:00, no step kept, 16.0 GPU-hours")
    assert lines[2:] == [
        "48.0 GPU-hours, $315.41 spent; $439.16 on demand, where no step is done again: $123.76 saved",
        "an hour of gcp a3-highgpu-1g: $6.571 spot, $10.9791 on demand, as of 2026-09-26, Cloud Billing catalogue, "
        "us-central1, as collected by silybench-data",
    ]


def test_prices_of_ones_own_go_for_any_place_and_whole_machines_are_paid_for(run, capsys, tmp_path):
    (tmp_path / "own.csv").write_text(OWN)
    add_attempt(run, 1, target="slurm", settings={}, ranks_per_node=4, state="SUCCEEDED")
    lines, state = told(run, capsys)
    assert lines[-1] == "8.0 GPU-hours"  # nobody has said that this cluster is paid for
    assert (state["bill"]["spent_usd"], state["bill"]["unpriced"]) == (None, [])
    lines, state = told(run, capsys, "--prices", str(tmp_path / "own.csv"))
    assert state["bill"]["spent_usd"] == 2 * 80
    assert (state["bill"]["on_demand_usd"], state["bill"]["saved_usd"]) == (None, None)  # that is what was paid
    assert lines[-2].endswith("8.0 GPU-hours, $160.00 spent")


@pytest.mark.parametrize(
    ("record", "gpu", "reason"),
    [
        ({}, "NVIDIA H200", None),
        ({}, "NVIDIA L40S", "no spot price of l40s on gcp is known; give --prices FILE"),
        ({}, None, "the kind of GPU is not known"),
        ({}, "NVIDIA V100", "the kind of GPU is not known"),
        ({"settings": GKE | {"provider": "eks"}}, "NVIDIA H100", "no spot price of h100 on aws is known"),
        ({"settings": GKE | {"provider": "eks", "spot": False}}, "NVIDIA H100", None),
    ],
)
def test_what_has_no_price_is_said_and_not_guessed(run, capsys, record, gpu, reason):
    add_attempt(run, 1, gpu=gpu, state="SUCCEEDED", **record)
    lines, state = told(run, capsys)
    assert (state["bill"]["spent_usd"] is None) == (reason is not None)
    assert (reason or "as of 2026-") in lines[-1]
    assert reason is None or lines[-1].startswith("not in it: of attempt 1 ")


def test_ranks_on_cpus_have_no_gpu_hours_and_no_bill(run, capsys):
    add_attempt(run, 1, gpu=None, has_gpus=False, state="SUCCEEDED")
    lines, state = told(run, capsys)
    assert (lines, state["bill"], state["attempts"][0]["gpu_hours"]) == ([], None, None)


def test_an_attempt_without_an_end_counts_to_the_last_that_it_wrote_and_one_that_never_began_not_at_all(run, capsys):
    lost = add_attempt(run, 9)
    (lost.folder / "outcome.json").unlink()
    os.utime(lost.events, (0, 1000 + HOUR))
    waited = add_attempt(run, 9)
    waited.events.unlink()
    add_attempt(run, 1, state="SUCCEEDED")
    _, state = told(run, capsys)
    assert [attempt["gpu_hours"] for attempt in state["attempts"]] == [16, 0, 16]


def test_the_hours_and_the_cloud_of_a_managed_job_are_those_that_skypilot_tells(run, capsys, tmp_path, monkeypatch):
    sky.install(tmp_path / "sky")
    monkeypatch.setenv("PATH", f"{tmp_path}/sky/bin{os.pathsep}{os.environ['PATH']}")
    record = {"target": "sky", "settings": SKY, "nodes": 1, "ranks_per_node": 8, "has_gpus": True, "started": 1000.0}
    run.new_attempt({**record, "handle": "run-1"})
    run.new_attempt({**record, "handle": "run-2"})
    sky.set_jobs(tmp_path / "sky", {"job_name": "run-2", "cloud": "GCP", "job_duration": HOUR / 2})
    lines, state = told(run, capsys)
    assert [attempt["gpu_hours"] for attempt in state["attempts"]] == [None, 4]
    assert state["bill"]["spent_usd"] == pytest.approx(50.0856 / 2)  # eight H200 of Google
    assert "not in it: of attempt 1 the hours are not seen here; the bill of the cloud has them" in lines


def test_prices_that_cannot_be_read_are_refused(run, capsys):
    add_attempt(run, 1, state="SUCCEEDED")
    assert main(["status", str(run.folder), "--prices", "nowhere.csv"]) == 2
    assert "--prices nowhere.csv cannot be read" in capsys.readouterr().err


def test_a_bill_is_there_although_a_file_that_the_place_had_is_gone(run, capsys, tmp_path):
    add_attempt(run, 1, target="local_spot", settings={"trace": str(tmp_path / "gone")}, state="SUCCEEDED")
    assert told(run, capsys)[1]["bill"]["gpu_hours"] == 16
