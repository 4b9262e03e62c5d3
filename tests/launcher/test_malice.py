"""Run folders and names made by somebody who means harm: one line, no traceback, nothing that steers a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.nowhere import Nowhere
from support.payloads import ESCAPE, PAYLOADS

from cluster import backend
from launcher import cli
from launcher.errors import NoProgress
from launcher.terminal import printable

RECORD = {"format": 1, "run": "run", "recipe": "/nowhere/recipe.py", "steps": 60}
OUTCOME = {"state": "FAILED", "cause": "", "exit_code": 1}
ATTEMPT = {"target": "local", "handle": "1:1"}
PACE = {"rank": 0, "host": "vm", "seconds": 1.0}
METRICS = {"step": 1, "attempt": 1, "loss": 1.0}
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))
FILES = {
    "run.json": ["", "[]", "null", "{", "[" * 10**5, "{}", '{"format": 1}', json.dumps(RECORD | {"steps": "x"})],
    "attempts/0001/outcome.json": [
        "{", "[]", json.dumps(OUTCOME | {"extra": 1}), json.dumps({"state": "FAILED"}),
        json.dumps(OUTCOME | {"step": ""}),
        json.dumps(OUTCOME | {"cause": ESCAPE}), json.dumps(OUTCOME | {"state": ESCAPE}),
    ],
    "attempts/0001/attempt.json": [
        "{", json.dumps(ATTEMPT | {"handle": "x:y"}), json.dumps(ATTEMPT | {"handle": 7}),
        json.dumps(ATTEMPT | {"target": ESCAPE}), json.dumps(ATTEMPT | {"target": "os:system"}),
        json.dumps(ATTEMPT | {"has_gpus": True}), json.dumps(ATTEMPT | {"started": ESCAPE}),
        json.dumps(ATTEMPT | {"has_gpus": True, "nodes": -1, "ranks_per_node": 2**61, "started": float("nan")}),
    ],
    "attempts/0001/pace/from-rank-0.json": [
        "{", "[]", '{"ranks": 7}', '{"ranks": [7]}', '{"ranks": [{}]}',
        json.dumps({"ranks": [PACE | {"seconds": "x"}]}),
        json.dumps({"ranks": [PACE | {"seconds": 0.0}]}), json.dumps({"ranks": [PACE | {"seconds": float("nan")}]}),
        json.dumps({"ranks": [PACE] * 3 + [PACE | {"host": ESCAPE, "seconds": 9e99}]}),
    ],
    "attempts/0001/events.jsonl": ["[" * 10**5 + "\n", json.dumps({"event": "restarted", "cause": [ESCAPE]}) + "\n"],
    "metrics.jsonl": [
        "[]\n", "7\n", '{"step": "x"}\n', "[" * 10**5 + "\n", "{}\n", json.dumps(METRICS | {"loss": ESCAPE}) + "\n",
        '{"step": ' + "9" * 4000 + ', "attempt": 1, "loss": 1.0}\n', "\x1b[31m\n", "x" * 2**21,
    ],
    "config.yaml": [
        "!!python/object/apply:os.mkdir [CANARY]", "!!python/name:os.system", "a: *b", LAUGHS, "[" * 10**4, "- 1", "",
        "1: 2", "steps: 2024-01-01", f"{ESCAPE}: 1", "model: ${oc.env:HOME}", "_target_: os.mkdir",
    ],
}  # fmt: skip
CASES = [(name, text) for name, texts in FILES.items() for text in texts]


def a_run(folder: Path) -> Path:
    run = folder / "runs/run"
    (run / "attempts/0001/pace").mkdir(parents=True)
    (run / "code").mkdir()
    for name in ("sitecustomize.py", "launcher.py", "recipe.py"):
        (run / "code" / name).write_text(f"import os; os.mkdir({str(folder / 'canary')!r})")
    (run / "run.json").write_text(json.dumps(RECORD))
    (run / "attempts/0001/attempt.json").write_text(json.dumps(ATTEMPT))
    return run


def assert_inert(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    cli.main([*words, "--runs-dir", str(folder / "runs")])
    said = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
    assert len(said.err.splitlines()) <= 1
    assert not (folder / "canary").exists()
    return said.err


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_malicious_file_of_a_run_gives_one_line(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text = CASES[number]
    (a_run(tmp_path) / name).write_text(text.replace("CANARY", str(tmp_path / "canary")))
    for words in (["status", "run"], ["ls"]):
        assert_inert(words, tmp_path, capsys)
    if name in ("config.yaml", "run.json"):
        assert assert_inert(["resume", "run"], tmp_path, capsys)


@pytest.mark.parametrize("number", [i for i, (name, _) in enumerate(CASES) if name not in ("config.yaml", "run.json")])
def test_a_run_with_a_malicious_file_is_resumed_or_refused(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is resumed runs its code, so here it runs nowhere: up to there nothing may happen."""
    monkeypatch.setitem(backend.BACKENDS, "nowhere", "support.nowhere:Nowhere")
    Nowhere.leave = staticmethod(lambda attempt: None)
    run, (name, text) = a_run(tmp_path), CASES[number]
    (run / "config.yaml").write_text("model: {name: a}\ndata: {path: /b.txt}\nsteps: 60\n")
    (run / name).write_text(text)
    code = cli.main(["resume", "run", "--on", "nowhere", "--runs-dir", str(tmp_path / "runs")])
    said = capsys.readouterr()
    assert code in (2, NoProgress.exit_code)
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
    assert said.err.splitlines()[-1].startswith("launch: " if code == 2 else "failed: ")
    assert not (tmp_path / "canary").exists()


SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "attempts/0001/outcome.json", "attempts/0001/pace/from-rank-0.json"]
)
def test_what_is_no_file_gives_one_line(
    tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    SPECIAL[kind](a_run(tmp_path) / name)
    assert_inert(["status", "run"], tmp_path, capsys)


def test_a_damaged_run_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path).rename(tmp_path / "runs/whole")
    os.mkfifo(a_run(tmp_path) / "metrics.jsonl")
    assert cli.main(["ls", "--runs-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert "whole" in said.out
    assert said.err.startswith("run: ")
    assert "not a regular file" in said.err


PLACES = {
    "name": lambda text: ["recipes/gpt_tiny.py", f"--name={text}/"],
    "recipe": lambda text: [f"{text}.py"],
    "recipe variable": lambda text: [f"recipes/gpt_tiny.py:{text}"],
    "override": lambda text: ["recipes/gpt_tiny.py", f"seed={text}"],
    "key": lambda text: ["recipes/gpt_tiny.py", f"{text}=1"],
    "target": lambda text: ["recipes/gpt_tiny.py", f"--on={text}"],
    "run to resume": lambda text: ["resume", f"./{text}"],
    "run to look at": lambda text: ["status", f"./{text}"],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_payload_in_a_word_of_the_command_line_is_refused_in_one_line(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in PAYLOADS:
        assert assert_inert(PLACES[place](text), tmp_path, capsys), repr(text)
        assert not Path("canary").exists()
        assert not (tmp_path / "runs").exists()


def test_there_are_two_hundred_payloads() -> None:
    assert len(PAYLOADS) * len(PLACES) >= 200


@pytest.mark.parametrize("text", PAYLOADS)
def test_nothing_steers_the_terminal(text: str) -> None:
    assert printable(text).isprintable()
