"""Runs on a real Slurm go on by themselves through whatever ends their jobs, and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import psutil
from support.runs_for_tests import json_lines, wait_for
from support.slurm import RANKS, SlurmRun, hosts, outcomes, slurm_run

from launcher.train.nodes import LOST_SECONDS


def test_a_requeue_at_a_random_moment_and_the_signal_before_the_time_limit_change_nothing(slurm, course):
    choose = random.Random(1)
    run = slurm_run(slurm, course, "requeued")
    # The node of the batch script has no scontrol, as far as that knows; another one has.
    run.submit("slurm.signal=USR1", "slurm.setup=scontrol() { return 127; }")
    for start, disturb in enumerate(("scontrol requeue", "scancel --signal=USR1"), 1):
        run.wait_for_attempt(start)
        run.wait_for_step(run.random_step(choose))
        slurm.run(*disturb.split(), run.job)  # the last one is what Slurm does before the limit
        slurm.hurry(run.job)
    run.wait_for_success()
    run.check_ending()
    assert outcomes(run) == ["PREEMPTED", "PREEMPTED", "SUCCEEDED"]
    requeued, limited, last = (attempt["cause"] for attempt in run.status()["attempts"])
    assert requeued.startswith("SIGTERM (Slurm's KillWait is 5 s)")
    assert (limited, last) == ("SIGUSR1 (the job has no time limit)", "")
    logs = [sorted(log.name for log in (attempt / "logs").iterdir()) for attempt in run.attempts()]
    assert logs == [["node-0.log", "node-1.log", *(f"rank-{rank}.log" for rank in range(RANKS))]] * 3
    said = (run.run / "slurm/node-1.log").read_text()
    assert said.count("Loading pickle") == 3, said  # what submitit says each time is appended


def test_a_job_of_a_higher_priority_gets_its_nodes_and_the_run_goes_on_after_it(slurm, course):
    run = slurm_run(slurm, course, "preempted")
    run.submit()
    run.wait_for_step(20)
    high = slurm.run(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=sleep 1"
    )
    wait_for(lambda: slurm.job(high)["JobState"] in ("RUNNING", "COMPLETED"), "the job of higher priority to start")
    assert run.status()["state"] == "PENDING"
    slurm.hurry(run.job)
    run.wait_for_success()
    run.check_ending()
    assert outcomes(run) == ["PREEMPTED", "SUCCEEDED"]
    assert slurm.job(run.job)["Restarts"] == "1"
    cause = run.status()["attempts"][0]["cause"]
    # Of a job without a time limit Slurm 22.05 sometimes forgets when the grace ends.
    assert cause in ("SIGTERM (preempted with 20 s of grace)", "SIGTERM (Slurm's KillWait is 5 s)")
    assert f"{cause}: saving if there is time" in run.told()


def test_a_killed_rank_has_all_ranks_of_all_nodes_start_again_in_the_same_job(slurm, course):
    run = slurm_run(slurm, course, "killed")
    run.submit()
    run.wait_for_step(20)
    os.kill(pid_of_rank(run, 3), signal.SIGKILL)
    run.wait_for_success()
    run.check_ending()
    assert outcomes(run) == ["SUCCEEDED"]
    events = json_lines(run.run / "attempts/0001/events.jsonl")
    assert [event["cause"] for event in events if event["event"] == "restarted"] == [
        "rank 3 on node2: killed by SIGKILL"
    ]


def pid_of_rank(run: SlurmRun, rank: int) -> int:
    """As this machine numbers it: a node has numbers of its own."""
    log = run.run / f"attempts/0001/logs/rank-{rank}.log"
    for process in psutil.process_iter(["pid"]):
        try:
            if os.path.samestat(os.stat(f"/proc/{process.pid}/fd/1"), log.stat()):
                return process.pid
        except OSError:
            continue
    raise AssertionError(f"no process prints to {log}")


def test_a_node_that_loses_its_power_is_replaced(slurm, course):
    run = slurm_run(slurm, course, "powerless")
    run.submit()
    run.wait_for_step(20)
    slurm.script("node-kill", "node2")
    lost = time.monotonic()
    try:
        wait_for(lambda: outcomes(run)[0], "the other node to notice")
        assert time.monotonic() - lost < 2 * LOST_SECONDS
        assert (
            "node 1 (node2) has said nothing" in json.loads((run.attempts()[0] / "outcome.json").read_text())["cause"]
        )
        slurm.hurry(run.job)
        run.wait_for_success()
    finally:
        slurm.script("node-start", "node2")
    run.check_ending()
    assert outcomes(run) == ["LOST", "SUCCEEDED"]
    assert set(hosts(run, 2).values()) == {"node1", "node3"}
    slurm.idle()
