"""Whatever is wrong with what was typed or read, the answer is one line that names it, and nothing was done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bad_input import ADAPTER_FIELDS, CASES, FIELDS, OWN, STRANGE_KEYS, UNKNOWN_KEYS, Case, make_folder
from support.capabilities import obey_modes
from support.runs_for_tests import LAUNCH, environment, launch

from launcher import Data, Lora, Model, Recipe
from launcher.cli import COMMANDS, main
from launcher.overrides import flatten

HEAVY = ("torch", "transformers", "peft", "numpy", "rich", "tensorboard", "fsspec", "launcher.train.")

MOST_FILES = 20
MOST_PROCESSES = 1  # git, which knows where the code of an existing run lies

# What would be right, or what to do.
REMEDY = re.compile(
    r"must |is not (a|one of|an|true) |cannot be null|did you mean"
    r"|[;(] ?(use|give|choose|write|make|set|see|restore|correct)\b"
    r"|launch (ls|status|show)|needs |is missing|takes no|expected one argument|required|choose from"
    r"|not allowed with|--allow-change|instead of|a recipe is data|there are: |ignored explicit argument"
    r"|:\d+: the recipe raised|is unknown"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_folder(folder)
    return folder


@pytest.fixture(autouse=True)
def _without_traces(monkeypatch, folder):
    """The folder of the cases, no GPU, an environment without settings, and module paths as they were."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("LAUNCH_RUNS_DIR", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])


def content(folder: Path) -> dict[str, bytes | None]:
    """Each file and folder, with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def answer(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, called in this process."""
    try:
        code = main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class Costs:
    """Files that are opened, beside modules, and processes that are started, while it is entered.

    What makes a refusal slow are these and imports: they are counted, because time on a busy machine says nothing.
    """

    def __init__(self) -> None:
        self.is_counting = False
        self.files: list[str] = []
        self.processes: list[str] = []
        sys.addaudithook(self._note)  # for the life of this process

    def __enter__(self) -> Costs:
        self.files, self.processes, self.is_counting = [], [], True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_counting = False

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_counting:
            return
        if event == "open" and isinstance(path := arguments[0], str) and not path.endswith((".py", ".pyc")):
            self.files.append(path)
        if event in ("subprocess.Popen", "os.posix_spawn", "os.system", "os.fork"):
            self.processes.append(str(arguments[0]))


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_line_that_names_field_value_and_remedy(case: Case, folder, capsys, costs):
    before, loaded = content(folder), set(sys.modules)
    with costs:
        code, out, err = answer(case.words, capsys)
    assert len(costs.files) <= MOST_FILES, " ".join(costs.files)
    assert len(costs.processes) <= MOST_PROCESSES, costs.processes
    assert (code, out) == (case.code, ""), err
    assert err.startswith("launch: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    for text in case.said:
        assert text in err
    assert REMEDY.search(err), "it does not say what would be right"
    assert not [name for name in set(sys.modules) - loaded if name.startswith(HEAVY)]
    assert content(folder) == before, "something was written"


def test_the_table_covers_every_setting_and_every_command():
    recipe = Recipe(model=Model(name="a"), data=Data(path="x"), steps=1, adapter=Lora())
    keys = {key for key in flatten(recipe) if not key.startswith(("model.arguments", "data.arguments"))}
    assert keys <= {*FIELDS, *ADAPTER_FIELDS}
    assert {*COMMANDS} - {"train"} <= {case.words[0] for case in CASES}
    assert len({case.words for case in CASES}) == len(CASES) >= 300


PROCESSES: dict[str, tuple[list[str], int, str]] = {
    "a recipe that imports torch": (
        ["show", "torch_first.py"],
        2,
        "torch_first.py imports torch at its top level; import it",
    ),
    "a recipe that imports a part of torch": (["torch_part.py"], 2, "torch_part.py imports torch at its top level"),
    "a recipe that leaves by itself": (
        ["really_exits.py"],
        2,
        "really_exits.py:2: the recipe calls os._exit; a recipe is data",
    ),
    "a recipe that forks": (["forks.py"], 2, "forks.py:2: the recipe calls os.fork; a recipe is data"),
    "a recipe that interrupts": (["interrupts.py"], 130, "interrupted before the run started"),
    "a recipe that forgets all modules": (["forgets.py"], 2, "forgets.py:2: the recipe raised ValueError: boom"),
    "a recipe that moves": (["show", "moves.py", "steps=x"], 2, "steps=x is not a whole number"),
    "a recipe that reads what is typed": (["stdin.py"], 2, "stdin.py:1: the recipe raised EOFError"),
    "a recipe with a finished thread": (["show", "thread.py", "steps=0"], 2, "steps=0 must be at least 1"),
    "a setting": (["own.py", "optimizer.lrr=1"], 2, "unknown setting optimizer.lrr=1; did you mean optimizer.lr?"),
    "a flag": (["own.py", "--gpuss", "2"], 2, "unknown flag --gpuss; did you mean --gpus?"),
    "a run": (["resume", "god"], 2, "did you mean good?"),
    "bytes that are no text": (["show", "\udcff\udcfe"], 2, "there is no recipe"),
    "a terminal's escapes": (["show", "\x1b[2J\x07"], 2, "there is no recipe"),
    "an empty word": ([""], 2, "there is no recipe"),
}
MORE_RECIPES = {
    "torch_first.py": "import torch\n" + OWN,
    "torch_part.py": "from torch.nn import Linear\n" + OWN,
    "interrupts.py": "raise KeyboardInterrupt",
    "forgets.py": "import sys; sys.modules.clear()\nraise ValueError('boom')",
    "moves.py": "import os; os.chdir('/')\n" + OWN,
    "thread.py": "import threading; threading.Thread(target=int).start()\n" + OWN,
}


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_input_is_one_line_of_a_real_process(name, folder):
    words, code, said = PROCESSES[name]
    for file, text in MORE_RECIPES.items():
        (folder / file).write_text(text)
    before = content(folder)
    result = launch(*words, runs_dir=folder / "runs", cwd=folder)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    assert result.stderr.startswith("launch: ")
    assert result.stderr.count("\n") == 1
    assert content(folder) == before


# What is closed: the words that need it, then what the answer must hold.
CLOSED: dict[str, tuple[list[str], str]] = {
    "own.py": (["show", "own.py"], "own.py cannot be read: Permission denied; make it readable"),
    "part.yaml": (["show", "part.yaml"], "part.yaml cannot be read: Permission denied; `launch show RECIPE`"),
    "runs/good/run.json": (["status", "good"], "run.json: Permission denied; make it yours to use"),
    "runs/good/config.yaml": (["resume", "good"], "config.yaml cannot be read: Permission denied"),
    "full": (["own.py", "--runs-dir", "full/runs"], "cannot be written (Permission denied); choose another"),
    "full/": (["checkpoints", "export", "good", "full/new"], "is not yours to write; give another folder"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_may_not_be_read_or_written_is_named_in_one_line(name, folder):
    words, said = CLOSED[name]
    path, before = folder / name, content(folder)
    mode = path.stat().st_mode
    path.chmod(0o500 if path.is_dir() else 0)
    try:
        result = subprocess.run(
            [*LAUNCH, *words], cwd=folder, env=environment(folder / "runs"), capture_output=True, text=True,
            timeout=60, preexec_fn=obey_modes,
        )  # fmt: skip
    finally:
        path.chmod(mode)
    assert said in result.stderr
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert content(folder) == before


def test_a_recipe_that_catches_even_its_time_limit_is_ended(folder):
    (folder / "stubborn.py").write_text("import time\nwhile True:\n try: time.sleep(60)\n except BaseException: pass\n")
    code = (
        "import launcher.cli, launcher.loading as l; l.IMPORT_SECONDS = 0.1; exit(launcher.cli.main(['stubborn.py']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("launch: the recipe catches every exception, and importing it took more than 0.1 s")
    assert result.stderr.count("\n") == 1


KEYS = st.sampled_from([*FIELDS, *ADAPTER_FIELDS, *UNKNOWN_KEYS, *STRANGE_KEYS])
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["null", "[]", "{}", "[1, [2]]", "{a: 1}", "${a}", "!!x", "&a *a", "'", '"', "???", "~", "#", "\\${a}"]
    ),
)
FLAGS = st.sampled_from(
    ["--laptop", "--no-laptop", "--json", "--jsn", "--", "-", "-x", "--laptop=1", "--nodes", "--help="]
)
WORDS = st.one_of(st.builds("{}={}".format, KEYS, VALUES), FLAGS, st.text(max_size=8))


def assert_that_it_was_refused_or_done(
    words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = answer(words, capsys)
    assert code in (0, 2), err
    assert err.count("\n") == (1 if code else 0)
    assert err.startswith("launch: ") or code == 0


SETTINGS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SETTINGS
@given(file=st.sampled_from(["own.py", "adapter.py", "gpt_tiny"]), words=st.lists(WORDS, max_size=3))
def test_any_words_are_done_or_refused_in_one_line(file, words, folder, capsys):
    before = content(folder)
    assert_that_it_was_refused_or_done(("show", file, *words), folder, capsys)
    assert content(folder) == before


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(SCALARS, inner, max_size=2), max_leaves=4
)
NAMES = st.sampled_from(
    ["model", "data", "steps", "optimizer", "adapter", "batch", "laptop", "loss", "checkpoint", "quantize", "x"]
)
SECTIONS = st.dictionaries(
    st.sampled_from(["name", "path", "build", "lr", "betas", "size", "rank", "arguments", "y"]), TREES, max_size=3
)
WHOLE = {"model": {"name": "a"}, "data": {"path": "b"}, "steps": 3}


@SETTINGS
@given(changes=st.dictionaries(NAMES, TREES | SECTIONS, max_size=3))
def test_any_yaml_is_a_recipe_or_refused_in_one_line(changes, folder, capsys):
    (folder / "any.yaml").write_text(yaml.safe_dump(WHOLE | changes, allow_unicode=True), "utf-8", "surrogatepass")
    before = content(folder)
    assert_that_it_was_refused_or_done(("show", "any.yaml"), folder, capsys)
    assert content(folder) == before


@SETTINGS
@given(text=st.text(alphabet="abst:-[]{}!&*?|>'\"%@`#,\n \t\0é", max_size=30))
def test_any_text_that_should_be_yaml_is_refused_in_one_line(text, folder, capsys):
    (folder / "any.yaml").write_text(text, "utf-8")
    assert_that_it_was_refused_or_done(("show", "any.yaml"), folder, capsys)
