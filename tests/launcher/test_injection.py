"""Hostile texts in what a run takes from elsewhere and shows: they run nothing, touch nothing else, stay in their line.

The words of the command line themselves are in test_malice.py.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from support.nowhere import Nowhere
from support.payloads import PAYLOADS, as_file_name

from checkpoints.owner import this_process
from cluster import backend
from launcher import cli
from launcher.commands import train
from launcher.pace import Pace
from launcher.runs import Attempt, Outcome
from launcher.train.__main__ import _failed
from launcher.train.failures import NonFiniteLoss, describe

BENIGN = "plain"
RECIPE = """
from launcher import Data, Model, Recipe
RECIPE = Recipe(model=Model(name={model!r}), data=Data(path={data!r}), steps=9)
"""
# What is neither a file's name nor text: a data path of it is refused before anything is written.
NO_PATHS = ("\x00",)


@dataclass
class Said:
    code: int
    out: list[str]
    err: list[str]


def say(*words: str) -> Said:
    """Call the command line; whatever it shows has no control character."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = cli.main(words)
    assert all(c.isprintable() or c == "\n" for c in out.getvalue() + err.getvalue()), words
    return Said(code, out.getvalue().splitlines(), err.getvalue().splitlines())


@pytest.fixture(scope="module", autouse=True)
def _nowhere() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setitem(backend.BACKENDS, "nowhere", "support.nowhere:Nowhere")
        yield


def failed(attempt: Attempt, error: BaseException) -> None:
    """As the agent does when a rank has ended with that exception."""
    attempt.write_outcome(_failed(describe(error, 0, attempt.rank_log(0)), 0))


def leave_events(attempt: Attempt, text: str) -> None:
    """Everything that ranks tell in texts which are not theirs."""
    events = attempt.open_events()
    events.tell("model", trainable=1, total=2, device=text, precision="fp32")
    events.tell("completed", step=1, prompt=text, text="an answer")
    events.tell("skipped", commit=1, reason=text)
    events.tell("changed", text=text)
    events.tell("damaged", text=text)
    events.tell("save_failed", step=1, cause=text)
    events.tell("restarted", restart=1, cause=str(describe(MemoryError(text), 0, attempt.rank_log(0))))
    attempt.write_paces([Pace(rank=i, host=text, seconds=1.0 + 9 * (i == 2)) for i in range(3)])


def a_tree(folder: Path, name: str, *, model: str, data: str) -> Path:
    """A git work tree with a recipe and other files of that name, and what must be left out of a snapshot."""
    tree = folder / "trees" / name
    tree.mkdir(parents=True)
    subprocess.run(["git", "-C", str(tree), "init", "-q"], check=True)
    (tree / f"{name}.txt").write_text("text")
    (tree / f"{name}.pem").write_text("secret")
    (tree / "x.txt").write_text("data")
    recipe = tree / f"{name}.py"
    recipe.write_text(RECIPE.format(model=model, data=data))
    return recipe


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def train_and_look(folder: Path, text: str) -> list[Said]:
    """A run whose every foreign text is this one, and what is said of it: by the start, by status and by ls."""
    with pytest.MonkeyPatch.context() as patch:
        return _train_and_look(folder, text, patch)


def _train_and_look(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Said]:
    name = as_file_name(text)
    recipe = a_tree(folder, name, model=text, data=f"{BENIGN if text in NO_PATHS else text}.jsonl")
    runs = folder / "runs" / name
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LAUNCH_RUNS_DIR", str(runs))
    monkeypatch.setattr(socket, "gethostname", lambda: text)
    monkeypatch.setattr(train, "refuse_absent", lambda *_: None)  # neither the model nor the data is there
    Nowhere.leave = staticmethod(
        lambda attempt: (
            leave_events(attempt, text),
            failed(attempt, NonFiniteLoss(f"the loss is nan; samples: {text}")),
        )
    )
    before = content(folder / "trees")
    started = say(str(recipe), "--on", "nowhere", "--no-laptop")
    assert content(folder / "trees") == before, "the recipe's folder was touched"
    (run,) = [path for path in runs.iterdir() if not path.name.startswith(".")]
    assert (run / "code" / f"{name}.txt").exists()
    assert not (run / "code" / f"{name}.pem").exists()
    assert {path.name for path in folder.iterdir()} == {"trees", "runs"}
    assert not [path for path in folder.rglob("*") if path.name == "canary"]
    return [started, say("status", run.name), say("status", str(run)), say("ls")]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[Said]:
    return train_and_look(tmp_path_factory.mktemp("usual"), BENIGN)


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_hostile_text_stays_in_its_line_wherever_a_run_takes_it_from(
    tmp_path: Path, number: int, usual: list[Said]
) -> None:
    told = train_and_look(tmp_path, PAYLOADS[number])
    assert [(said.code, len(said.out), len(said.err)) for said in told] == [
        (said.code, len(said.out), len(said.err)) for said in usual
    ]
    assert told[0].err[-1].startswith("failed: rank 0 on ")


@pytest.mark.parametrize("text", NO_PATHS)
def test_a_data_path_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    recipe = a_tree(tmp_path, "tree", model="m", data=text)
    told = say(str(recipe), "--on", "nowhere", "--runs-dir", str(tmp_path / "runs"))
    assert (told.code, told.out, len(told.err)) == (2, [], 1)
    assert "data.path=" in told.err[0]
    assert not (tmp_path / "runs").exists()


def explode(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_the_last_line_is_ours_whatever_user_code_raises(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback and a completion are shown with the line feeds that they have; the line after them is the cause."""

    def leave(attempt: Attempt) -> None:
        attempt.open_events().tell("completed", step=1, prompt="say", text=PAYLOADS[number])
        with pytest.raises(ValueError) as caught:  # noqa: PT011  any text
            explode(PAYLOADS[number])
        failed(attempt, caught.value)

    Nowhere.leave = staticmethod(leave)
    monkeypatch.chdir(tmp_path)
    recipe = a_tree(tmp_path, "tree", model="m", data="x.txt")
    told = say(str(recipe), "--on", "nowhere", "--runs-dir", str(tmp_path / "runs"))
    assert told.code == 1
    assert told.err[-1].startswith(f"failed: rank 0 on {socket.gethostname()}: ValueError")
    assert [line for line in told.err if line.startswith("failed: ")] == told.err[-1:]
    assert not [path for path in tmp_path.rglob("*") if path.name == "canary"]


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_what_people_copy_into_a_shell_is_one_word_to_it(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAYLOADS[number]
    Nowhere.leave = staticmethod(
        lambda attempt: attempt.write_outcome(Outcome(state="PREEMPTED", cause="SIGTERM", exit_code=75, step=3))
    )
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs" / as_file_name(text)
    told = say(str(a_tree(tmp_path, "tree", model="m", data="x.txt")), "--on", "nowhere", "--runs-dir", str(runs))
    assert told.err[-1].startswith("  launch resume ")
    words = told.err[-1].removeprefix("  launch resume ")
    shown = subprocess.run(["sh", "-c", f"printf '%s\\0' {words}"], cwd=tmp_path, capture_output=True, check=True)
    assert shown.stdout.count(b"\0") == 1
    assert not [path for path in tmp_path.rglob("*") if path.name == "canary"]


def test_the_owner_of_a_run_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in PAYLOADS:
        monkeypatch.setattr(socket, "gethostname", lambda text=text: text)
        assert str(this_process("job")).isprintable()
