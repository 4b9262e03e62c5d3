"""Which attempt a start of a batch job works on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs_for_tests import REPOSITORY

from checkpoints.log import CommitLog
from checkpoints.owner import this_process
from checkpoints.store import open_store
from cluster.allocation import Allocation
from cluster.errors import ClusterError
from launcher import job_start
from launcher.job_start import LOST_STARTS_WITHOUT_COMMIT, attempt_of
from launcher.loading import freeze, load
from launcher.runs import Attempt, Outcome, Run

PREEMPTED = Outcome(state="PREEMPTED", cause="SIGTERM", exit_code=75, step=3)


def submitted(run: Run, **record: object) -> Attempt:
    place = {"nodes": 2, "ranks_per_node": 2, "has_gpus": False, "micro": 2}
    return run.new_attempt({"target": "slurm", "commits": 0, **place, **record})


def allocation(start: int, job: str = "7", node: int = 0, hosts: tuple[str, ...] = ("a", "b")) -> Allocation:
    return Allocation(job=job, start=start, node=node, hosts=hosts)


def commit(run: Run) -> None:
    claim = CommitLog(open_store(run.checkpoints)).claim(this_process("run/1"))
    claim.commit(step=1, folder="data/1-1-0123456789abcdef", manifest_digest="0" * 64, size=1)


def test_the_first_start_is_the_attempt_that_was_submitted(run):
    attempt = submitted(run)
    assert attempt_of(run, allocation(0)) == attempt
    assert attempt_of(run, allocation(0, node=1)) == attempt
    assert attempt.record()["handle"] == "7"


def test_another_start_is_a_new_attempt_with_the_same_settings_and_the_same_submission(run):
    first = attempt_of(run, allocation(0)) if submitted(run) else None
    assert first is not None
    first.write_outcome(PREEMPTED)
    second = attempt_of(run, allocation(1))
    assert second.number == 2
    assert second.record()["micro"] == 2
    assert second.record()["submission"] == 1
    assert attempt_of(run, allocation(1, node=1)) == second


def test_a_start_with_another_number_of_nodes_spreads_the_same_batch_over_them(run):
    resolved = load("recipes/gpt_tiny.py", ["batch.size=12", "batch.micro=8"], laptop=True)
    freeze(resolved, REPOSITORY, run.config)
    submitted(run, micro=3)
    seen = []
    for start, hosts in enumerate((("a", "b"), ("a",), ("a", "b", "c"), ("a", "b"))):
        record = attempt_of(run, allocation(start, hosts=hosts)).record()
        seen.append((record["nodes"], record["micro"], record.get("asked_nodes")))
    assert seen == [(2, 3, None), (1, 6, 2), (3, 2, 2), (2, 3, 2)]


def test_a_run_that_has_ended_gets_no_further_attempt(run):
    first = submitted(run, handle="7")
    attempt_of(run, allocation(0))
    for state, cause in (("SUCCEEDED", ""), ("FAILED", "x"), ("CANCELLED", ""), ("PREEMPTED", "stop_after")):
        first.write_outcome(Outcome(state=state, cause=cause, exit_code=0))
        assert attempt_of(run, allocation(1)) == first


@pytest.mark.parametrize("outcome", [None, replace(PREEMPTED, is_out_of_time=True)])
def test_a_job_that_is_lost_or_out_of_time_again_and_again_fails(run, outcome):
    submitted(run, handle="7")
    for start in range(LOST_STARTS_WITHOUT_COMMIT + 1):
        attempt = attempt_of(run, allocation(start))
        assert attempt.number == start + 1
        if outcome is not None:
            attempt.write_outcome(outcome)
    last = attempt_of(run, allocation(LOST_STARTS_WITHOUT_COMMIT + 1))
    assert last.number == LOST_STARTS_WITHOUT_COMMIT + 1
    outcome = last.outcome()
    assert outcome is not None
    assert (outcome.state, outcome.exit_code) == ("FAILED", 93)


def test_neither_preemptions_nor_progress_use_that_budget_up(run):
    submitted(run, handle="7")
    for start in range(2 * LOST_STARTS_WITHOUT_COMMIT):
        attempt_of(run, allocation(start)).write_outcome(PREEMPTED)
    for start in range(2 * LOST_STARTS_WITHOUT_COMMIT, 4 * LOST_STARTS_WITHOUT_COMMIT):
        assert attempt_of(run, allocation(start)).outcome() is None
        commit(run)


def test_a_job_whose_run_went_on_as_another_one_stops(run):
    submitted(run, handle="7")
    submitted(run, handle="8")
    with pytest.raises(ClusterError, match="went on as job 8"):
        attempt_of(run, allocation(1))


def test_a_node_whose_first_node_never_begins_says_so(run, monkeypatch):
    monkeypatch.setattr(job_start, "APPEAR_SECONDS", 0.1)
    submitted(run)
    with pytest.raises(ClusterError, match="a has not begun an attempt"):
        attempt_of(run, allocation(0, node=1))
