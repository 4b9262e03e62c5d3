"""Groups of runs: what `--sweep` and `--seeds` mean, and what is refused before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nowhere import Nowhere
from support.runs_for_tests import TINY, launch, small_words, status

from cluster.backend import BACKENDS
from launcher.cli import main
from launcher.errors import DamagedRun, UsageError
from launcher.groups import group_of, members_of
from launcher.runs import Outcome, Run, all_runs, write_json
from launcher.sweep import MOST_MEMBERS, check_sweeps, combinations, parse_sweeps

PLAIN = st.text("abc019.-/ ", min_size=1, max_size=5).map(str.strip).filter(bool)
LISTS = st.lists(PLAIN, min_size=1, max_size=3).map(lambda values: f"[{', '.join(values)}]")


@given(values=st.lists(PLAIN | LISTS, min_size=1, max_size=5, unique=True))
def test_the_values_of_a_sweep_are_what_stands_between_its_commas(values):
    assert parse_sweeps([f"a.b={','.join(values)}"]) == {"a.b": tuple(values)}


def test_several_sweeps_give_the_product():
    sweeps = parse_sweeps(["optimizer.lr=1e-4, 3e-4", "batch.size=8,16"])
    assert [tuple(member.values()) for member in combinations(sweeps)] == [
        ("1e-4", "8"), ("1e-4", "16"), ("3e-4", "8"), ("3e-4", "16"),
    ]  # fmt: skip
    assert combinations({}) == [{}]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["lr"], "has no values; write KEY=VALUE,VALUE"),
        (["=1,2"], "has no values"),
        (["lr="], "has no values"),
        (["lr=1,,2"], "has no values"),
        (["lr=1,2,1"], "has 1 twice"),
        (["lr=1,2", "lr=3"], "--sweep lr is given twice"),
        (["slurm.time=1,2"], "--sweep slurm.time is a setting of a place"),
    ],
)
def test_a_sweep_that_is_none_is_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        parse_sweeps(flags)


def test_what_is_given_in_two_ways_and_what_nobody_wants_is_refused():
    check_sweeps({"a": ["1"] * MOST_MEMBERS}, 1, ["b=1"])
    for sweeps, seeds, words, said in (
        ({"a": ["1"]}, None, ["a=2"], "a=2 and --sweep a both"),
        ({"seed": ["1"]}, 2, [], "--sweep seed and --seeds 2 both"),
        ({"a": ["1"] * MOST_MEMBERS}, 2, [], f"make {2 * MOST_MEMBERS} runs"),
    ):
        with pytest.raises(UsageError, match=said):
            check_sweeps(sweeps, seeds, words)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LAUNCH_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(folder: Path, **record: object) -> Run:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"format": 1, "run": folder.name, "recipe": "x.py", "steps": 9, **record})
    return Run(folder)


def test_the_members_of_a_group_are_those_that_say_so_in_the_order_of_their_numbers(runs):
    for index in range(11):
        make(runs / f"g-{index}", group={"name": "g", "changes": {"seed": index}})
    make(runs / "g-x")
    make(runs / "g-0x", group={"name": "g-0x", "changes": {}})
    make(runs / "g-y-0", group={"name": "g-y", "changes": {}})
    assert [run.name for run in members_of("g", runs)] == [f"g-{index}" for index in range(11)]
    assert members_of(str(runs / "g"), Path("/nowhere")) == members_of("g", runs)
    assert members_of("[g]", runs) == members_of("", runs) == members_of("g-x", runs) == []
    assert [run.name for run in all_runs(runs)][-4:] == ["g-9", "g-10", "g-x", "g-y-0"]
    (runs / "lone").mkdir()
    (runs / "lone/run.json").touch()
    (runs / "lone-1").mkdir()
    (runs / "lone-1/run.json").write_text("damaged")
    assert members_of("lone", runs) == []  # a run is no group, whatever lies beside it


@pytest.mark.parametrize("group", ["g", {}, {"name": "g"}, {"name": 3, "changes": {}}])
def test_a_record_of_a_group_that_is_none_is_refused(tmp_path, group):
    with pytest.raises(DamagedRun):
        group_of(make(tmp_path / "run", group=group))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "optimizer.lr=1e-3,x"], "optimizer.lr=x is not a number"),
        (["--sweep", "optimizr.lr=1e-3"], "did you mean optimizer.lr?"),
        (["--sweep", "batch.size=4,1", "--gpus", "2"], "batch.size=1 cannot be spread over 2 ranks"),
        (["--seeds", "0"], "--seeds: 0 is not a whole number"),
        (["--seeds", "2", "--name", "taken"], "--name taken is a run, which is no group"),
        (["--seeds", "2", "--name", "own"], "own-1 is no run of the group own"),
        (["--seeds", "2", "--name", "x" * 127], "is not a run name"),
        (["--name", "g"], "--name g is a group of runs"),
    ],
)
def test_one_member_that_cannot_be_is_one_line_and_nothing_is_made(runs, capsys, words, said):
    make(runs / "taken")
    make(runs / "own-1")
    make(runs / "g-0", group={"name": "g", "changes": {}})
    before = sorted(runs.rglob("*"))
    code = main([TINY, *words])
    captured = capsys.readouterr()
    assert (code, captured.out, captured.err.count("\n")) == (2, "", 1), captured.err
    assert said in captured.err
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize(("cause", "begun"), [("SIGINT", 1), ("stop_after", 3)])
def test_a_stop_ends_the_runs_that_would_follow_unless_the_recipe_asks_for_it(runs, monkeypatch, cause, begun):
    stopped = Outcome(state="PREEMPTED", cause=cause, exit_code=75, step=1)
    monkeypatch.setattr(Nowhere, "leave", lambda attempt: attempt.write_outcome(stopped), raising=False)
    monkeypatch.setitem(BACKENDS, "nowhere", "support.nowhere:Nowhere")
    assert main([TINY, "--on", "nowhere", "--name", "g", "--seeds", "3"]) == 75
    assert [len(run.attempts()) for run in members_of("g", runs)] == [1] * begun + [0] * (3 - begun)


def test_here_the_runs_of_a_group_are_trained_one_after_the_other(tmp_path):
    small = small_words(1, steps=4, schedule__warmup_steps=0)
    words = [*small, "--name", "g", "--sweep", "model.arguments.heads=x,2"]
    shown = launch(*words, "--seeds", "2", "--dry-run", "--no-steps", runs_dir=tmp_path)
    assert (shown.returncode, shown.stdout.count("-m launcher.train"), list(tmp_path.iterdir())) == (0, 4, [])
    result = launch(*words, runs_dir=tmp_path, timeout=300)
    states = [(run.name, status(run.folder)["state"]) for run in members_of("g", tmp_path)]
    assert states == [("g-0", "FAILED"), ("g-1", "SUCCEEDED")], result.stderr
    assert result.returncode == 1
    assert result.stdout.splitlines() == [str(tmp_path / "g-0"), str(tmp_path / "g-1")]
    assert "1 of 2 runs have ended well" in result.stderr
    group = json.loads(launch("status", "g", "--json", runs_dir=tmp_path).stdout)
    assert [run["changes"] for run in group["runs"]] == [{"model.arguments.heads": heads} for heads in ("x", 2)]
    resumed = launch(*words, "--dry-run", "--no-steps", runs_dir=tmp_path)
    assert "g-1 has ended well at step 4; there is nothing to resume" in resumed.stderr
    assert resumed.stdout.count("-m launcher.train") == 1
