from __future__ import annotations

import threading

import pytest

from launcher.errors import UsageError
from launcher.runs import LineFile, Outcome, Run, check_run_name, find_run, write_json, write_text
from launcher.train.metrics import _cut_after
from launcher.watch import _Tail, printable


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "-a", "a b", "a\nb", "a\0", "é", "a" * 129, "$(touch x)", "a;b", "`a`", "_a"]
)
def test_a_run_name_that_could_be_more_than_a_name_is_refused(name):
    with pytest.raises(UsageError, match="is not a run name"):
        check_run_name(name)


@pytest.mark.parametrize("name", ["a", "Run-1.2_x", "7b"])
def test_a_plain_run_name_is_kept(name):
    assert check_run_name(name) == name


def test_launchers_that_start_at_once_get_different_attempts(tmp_path):
    run = Run(tmp_path)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(run.new_attempt({}).number)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))


def test_an_outcome_comes_back_as_it_was_written(tmp_path):
    attempt = Run(tmp_path).new_attempt({})
    assert attempt.outcome() is None
    outcome = Outcome(state="FAILED", cause="x", exit_code=1, step=3)
    attempt.write_outcome(outcome)
    assert attempt.outcome() == outcome


def test_an_unknown_run_names_the_nearest_one(tmp_path):
    (tmp_path / "first").mkdir()
    write_json(tmp_path / "first/run.json", {"format": 1})
    with pytest.raises(UsageError, match=r"no run 'frist' in .*; did you mean first\?"):
        find_run("frist", tmp_path)


def test_a_folder_of_another_format_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"format": 99})
    with pytest.raises(UsageError, match="has format 99; this launcher reads formats 1 and 2"):
        Run(tmp_path).record()


def test_a_run_that_has_had_copies_on_disks_keeps_the_format_that_says_so(tmp_path):
    run = Run(tmp_path)
    assert [run.format_with(copies=copies) for copies in (False, True)] == [1, 2]
    write_json(tmp_path / "run.json", {"format": 2})
    assert run.format_with(copies=False) == 2


def test_a_tail_sees_each_whole_line_once(tmp_path):
    path = tmp_path / "lines.jsonl"
    tail = _Tail(path)
    assert list(tail.new()) == []
    path.write_text('{"a": 1}\n{"a": ')
    assert list(tail.new()) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(tail.new()) == [{"a": 2}]
    write_text(path, '{"a": 1}\n')  # another file, that was cut
    assert list(tail.new()) == []
    with open(path, "a") as file:
        file.write('{"a": 3}\n')
    assert list(tail.new()) == [{"a": 3}]


def test_a_line_after_a_torn_one_stands_alone(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    LineFile(path).add({"a": 2})
    assert list(_Tail(path).new()) == [{"a": 1}, {"a": 2}]


def test_an_attempt_that_never_began_is_passed_over(tmp_path):
    run = Run(tmp_path)
    run.new_attempt({})
    (tmp_path / "attempts/0002").mkdir()
    assert [attempt.number for attempt in run.attempts()] == [1]
    (tmp_path / "attempts/0002/logs").mkdir()
    assert run.new_attempt({}).number == 3


def test_records_after_the_resumed_step_are_cut_with_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in (1, 2, 3, 4)) + '{"step": 5')
    _cut_after(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_lines_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "lines.jsonl"
    files = [LineFile(path) for _ in range(4)]
    for i in range(50):
        for file in files:
            file.add({"n": i, "text": "x" * 100})
    assert len(path.read_text().splitlines()) == 200
    assert len(list(_Tail(path).new())) == 200


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[31mb\r\n\tc") == "a\\x1b[31mb\\r\\n\\tc"
