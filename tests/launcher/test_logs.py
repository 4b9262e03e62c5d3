"""`launch logs`."""

from __future__ import annotations

from launcher.cli import main
from launcher.runs import Outcome


def test_the_logs_of_all_starts_are_printed_in_their_order(run, capsys):
    for number in (1, 2, 3):
        attempt = run.new_attempt({"target": "local", "nodes": 1, "ranks_per_node": 2})
        attempt.write_outcome(Outcome(state="PREEMPTED", cause="", exit_code=75))
        for rank in range(2):
            attempt.rank_log(rank).write_text(f"rank {rank}\nof start {number}\n")
    assert main(["logs", str(run.folder), "--rank", "1"]) == 0
    assert capsys.readouterr().out == "".join(f"rank 1\nof start {number}\n" for number in (1, 2, 3))
    assert main(["logs", str(run.folder), "--follow"]) == 0
    assert capsys.readouterr().out == "".join(f"rank 0\nof start {number}\n" for number in (1, 2, 3))
