"""The shipped training data is well-formed and as its card says, and the script still makes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "recipes" / "data"
QUESTIONS = DATA / "python_docs.jsonl"
REFERENCE = DATA / "python_reference.txt"
CARD = (DATA / "README.md").read_text(encoding="utf-8")

MADE_ON_THIS_MINOR_VERSION = sys.version_info[:2] == (3, 11) and sys.platform == "linux"
MADE_ON_THIS_VERSION = MADE_ON_THIS_MINOR_VERSION and sys.version_info[:3] == (3, 11, 7)


def questions(folder: Path = DATA) -> list[dict[str, str]]:
    lines = (folder / QUESTIONS.name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def held_out(ids: list[str]) -> int:
    return sum(int(sha256(each.encode()).hexdigest()[:8], 16) % 20 == 0 for each in ids)


def make_datasets(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: tests before this one may have changed what the standard library's modules hold.
    command = [sys.executable, "-I", str(ROOT / "scripts" / "make-datasets"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets as the running Python makes them."""
    folder = tmp_path_factory.mktemp("remade")
    result = make_datasets("--folder", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


def test_every_question_has_an_id_a_question_and_an_answer() -> None:
    for line in questions():
        assert list(line) == ["id", "question", "answer"]
        assert all(isinstance(value, str) and value.strip() for value in line.values()), line


def test_ids_are_unique_and_sorted() -> None:
    ids = [line["id"] for line in questions()]
    assert ids == sorted(set(ids))


def test_answers_start_with_what_was_asked_about_and_end_as_sentences() -> None:
    for line in questions():
        assert f"`{line['id']}`" in line["question"], line
        assert line["answer"].startswith(f"`{line['id']}"), line
        assert line["answer"].endswith((".", "!", "?", ")")), line


def test_data_sets_stay_small() -> None:
    assert QUESTIONS.stat().st_size < 1_000_000
    assert REFERENCE.stat().st_size < 600_000
    assert max(len(line["answer"]) for line in questions()) <= 400


def test_nothing_in_the_data_comes_from_the_machine_it_was_made_on() -> None:
    text = QUESTIONS.read_text(encoding="utf-8") + REFERENCE.read_text(encoding="utf-8")
    assert not re.search(r" at 0x[0-9a-f]|/home/|/root/|site-packages/\w", text)


@pytest.mark.parametrize("path", [QUESTIONS, REFERENCE], ids=lambda path: path.name)
def test_card_states_size_and_digest(path: Path) -> None:
    content = path.read_bytes()
    lines = len(content.splitlines())
    assert re.search(rf"`{path.name}` \| [^|]* \| {lines} \| {len(content)} \|", CARD)
    assert f"| `{path.name}` | `{sha256(content).hexdigest()}` |" in CARD


def test_card_states_the_splits() -> None:
    windows = (REFERENCE.stat().st_size - 1) // 128
    samples = {
        "`python_docs.jsonl`": [line["id"] for line in questions()],
        "`python_reference.txt`, in windows of 128 bytes": [f"{REFERENCE.name}:{window}" for window in range(windows)],
    }
    for name, ids in samples.items():
        kept_back = held_out(ids)
        assert f"| {name} | {len(ids)} | {len(ids) - kept_back} | {kept_back} |" in CARD


@pytest.mark.skipif(not MADE_ON_THIS_MINOR_VERSION, reason="the data was made with CPython 3.11 on linux")
def test_questions_can_be_made_again(remade: Path) -> None:
    # Builds of one version differ in which functions os, socket and ssl have.
    shipped = {line["id"] for line in questions()}
    missing = shipped - {line["id"] for line in questions(remade)}
    assert len(missing) <= 0.05 * len(shipped), sorted(missing)


@pytest.mark.skipif(not MADE_ON_THIS_VERSION, reason="the data was made with CPython 3.11.7 on linux")
def test_reference_can_be_made_again(remade: Path) -> None:
    assert (remade / REFERENCE.name).read_bytes() == REFERENCE.read_bytes()


def test_check_names_the_file_that_differs(remade: Path, tmp_path: Path) -> None:
    (tmp_path / QUESTIONS.name).write_bytes((remade / QUESTIONS.name).read_bytes())
    (tmp_path / REFERENCE.name).write_text("something else", encoding="utf-8")
    result = make_datasets("--check", "--folder", str(tmp_path))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-2:] == ["python_docs.jsonl: same", "python_reference.txt: differs"]
