"""What people and programs can get wrong on the command line: each case with what the answer must name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from support.runs_for_tests import REPOSITORY

OWN = """
from launcher import *

def build(width=2):
    import torch
    return torch.nn.Linear(width, width)

def examples(split):
    return []

RECIPE = Recipe(model=Model(build=build), data=Data(build=examples), steps=10)
"""
WITH_ADAPTER = (
    'from launcher import *\nRECIPE = Recipe(model=Model(name="a"), data=Data(path="x.txt"), steps=9, adapter=Lora())\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`words` end with `code` and one line that holds each of `said`: the field, the value, and the remedy."""

    words: tuple[str, ...]
    said: tuple[str, ...]
    code: int = 2

    def __str__(self) -> str:
        return re.sub(r"[^ -~]|\\", "?", " ".join(word[:30] for word in self.words))


def case(words: str | list[str], *said: str, code: int = 2) -> Case:
    return Case(words=tuple(words.split(" ") if isinstance(words, str) else words), said=said, code=code)


def recipe_files() -> dict[str, bytes]:
    """The recipe files of the folder that the cases run in."""
    texts = {name: text for name, (text, *_) in RECIPES.items()}
    good = {"own.py": OWN, "adapter.py": WITH_ADAPTER, "own.txt": OWN}
    files = {name: text.encode() for name, text in (texts | good).items()}
    yamls = {name: text.encode("utf-8", "surrogateescape") for name, (text, *_) in YAMLS.items()}
    return (
        files
        | yamls
        | {
            "binary.py": b"\x7fELF\x00\x01\xff\xfe",
            "latin.py": "x = 'é'".encode("latin-1"),
            "wide.yaml": OWN.encode("utf-16"),
        }
    )


def make_folder(folder: Path) -> None:
    """Recipes and runs, whole and broken."""
    for name, content in recipe_files().items():
        (folder / name).write_bytes(content)
    (folder / "folder.py").mkdir()
    (folder / "folder.yaml").mkdir()
    (folder / "full").mkdir()
    (folder / "full/file").write_text("x")
    runs = folder / "runs"
    _make_run(runs / "good")
    _make_run(runs / "ended", outcome={"state": "SUCCEEDED", "cause": "", "exit_code": 0, "step": 10})
    _make_run(runs / "newer", record={"format": 99})
    _make_run(runs / "torn", record='{"format": 1,')
    _make_run(runs / "listed", record=[])
    _make_run(runs / "bare", record={"format": 1})
    _make_run(runs / "nosteps", record={"format": 1, "run": "nosteps", "recipe": "x.py", "steps": "many"})
    _make_run(runs / "badconfig", config="steps: [")
    _make_run(runs / "badvalue", config="model: {name: a}\ndata: {path: b}\nsteps: ten\n")
    _make_run(runs / "badlog")
    (runs / "badlog/checkpoints/log").mkdir(parents=True)
    (runs / "badlog/checkpoints/log/000000000001.json").write_text("{")
    (runs / "badattempt/attempts/0001").mkdir(parents=True)
    _make_run(runs / "badattempt")
    (runs / "badattempt/attempts/0001/attempt.json").write_text("{")
    _make_run(runs / "badoutcome", outcome={"state": "SUCCEEDED"})
    _make_run(runs / "noconfig")
    (runs / "noconfig/config.yaml").unlink()
    (runs / "empty").mkdir()
    (runs / "file").write_text("x")


def _make_run(folder: Path, record: object = None, config: str | None = None, outcome: object = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"format": 1, "run": folder.name, "recipe": str(REPOSITORY / "recipes/gpt_tiny.py"), "steps": 10}
    text = record if isinstance(record, str) else json.dumps(whole if record is None else record)
    (folder / "run.json").write_text(text)
    good = "model: {name: a}\ndata: {path: /b.txt}\nsteps: 10\n"
    (folder / "config.yaml").write_text(good if config is None else config)
    if outcome is not None:
        attempt = folder / "attempts/0001"
        attempt.mkdir(parents=True)
        (attempt / "attempt.json").write_text('{"number": 1, "ranks_per_node": 1, "threads_per_rank": 2}')
        (attempt / "outcome.json").write_text(json.dumps(outcome))


_NO_NUMBER = ("abc", "[1]", "{a: 1}", "1 2", "0x", "--5", "é", "${steps}", "1e", "null?")
# Key: values that are no such number, or are out of range.
FIELDS: dict[str, tuple[str, ...]] = {
    "steps": ("0", "-1", "3.5", "nan", "inf", "null", "true", "9" * 30, *_NO_NUMBER),
    "stop_after": ("0", "-1", "11", "3.5", "nan", "inf", "true", *_NO_NUMBER),
    "deterministic": ("maybe", "null", "2.5"),
    "seed": ("-1", "1.5", "nan", "null", "9223372036854775808", *_NO_NUMBER),
    "batch.size": ("0", "-4", "1.5", "inf", *_NO_NUMBER),
    "batch.tokens": ("0", "-256", "300", "nan", *_NO_NUMBER),
    "batch.micro": ("0", "-4", "1.5", "nan", "null", *_NO_NUMBER),
    "checkpoint.every": ("0", "-1", "0.5", "null", *_NO_NUMBER),
    "checkpoint.keep": ("0", "-1", "2.5", "null", *_NO_NUMBER),
    "checkpoint.local_folder": ("disk", "~/disk", "3", "[a]"),
    "data.sequence_length": ("1", "0", "-1", "nan", "null", *_NO_NUMBER),
    "data.workers": ("-1", "1.5", "inf", "null", *_NO_NUMBER),
    "schedule.warmup_steps": ("-1", "1.5", "null", *_NO_NUMBER),
    "evaluation.every": ("0", "-1", "1.5", "nan", *_NO_NUMBER),
    "evaluation.samples": ("-1", "1.5", "null", *_NO_NUMBER),
    "evaluation.tokens": ("0", "-1", "null", *_NO_NUMBER),
    "optimizer.lr": ("0", "-1", "10", "nan", "inf", "-inf", "null", *_NO_NUMBER),
    "optimizer.eps": ("0", "-1", "nan", "inf", "null", *_NO_NUMBER),
    "optimizer.weight_decay": ("-1", "nan", "inf", "null", *_NO_NUMBER),
    "optimizer.clip": ("0", "-1", "nan", "inf", *_NO_NUMBER),
    "optimizer.betas": (
        "0.9",
        "[]",
        "[0.9]",
        "[0.9,0.9,0.9]",
        "[0.9, 1.5]",
        "[-1.0, 0.9]",
        "[a,b]",
        "[nan, 0.9]",
        "null",
    ),
    "schedule.final_fraction": ("-0.1", "1.1", "nan", "null", *_NO_NUMBER),
    "schedule.kind": ("cosin", "", "null", "3", "[cosine]", "Cosine"),
    "parallel.strategy": ("dpp", "", "null", "3", "DDP"),
    "parallel.cpu_offload": ("maybe", "2.5", "null", "[true]"),
    "parallel.shard_within_node": ("maybe", "2.5", "null", "[true]"),
    "precision": ("fp8", "", "null", "16", "[fp32]"),
    "quantize": ("nf4", "int8", "null", "4"),
    "model.activation_checkpointing": ("maybe", "null", "3.5"),
    "model.arguments.width": ("[1]",),
    "data.arguments.a": ("[1, 2]",),
    "model.name": ("a", "[a]"),
    "model.build": ("nowhere", "3", "['a']"),
    "data.path": ("a.txt", "[a]"),
    "data.build": ("nowhere", "3"),
    "loss": ("nowhere", "3", "['a:b']"),
    "evaluation.complete": ("nowhere",),
    "evaluation.prompt": ("[a]",),
    "adapter": ("3", "lora"),
    "adapter.rank": ("8",),
    "model": ("x", "null"),
    "optimizer": ("x", "{lr: 1}", "null"),
    "laptop": ("{}",),
}
ADAPTER_FIELDS: dict[str, tuple[str, ...]] = {
    "adapter.rank": ("0", "-1", "1.5", "null", *_NO_NUMBER),
    "adapter.alpha": ("0", "-1", "nan", "inf", "null", *_NO_NUMBER),
    "adapter.dropout": ("-0.1", "1", "nan", "null", *_NO_NUMBER),
    "adapter.targets": ("[]", "q_proj", "null", "[null]", "[[a]]"),
    "quantize": ("nf5",),
}


def field_cases() -> list[Case]:
    own = [("own.py", key, value) for key, values in FIELDS.items() for value in values]
    adapter = [("adapter.py", key, value) for key, values in ADAPTER_FIELDS.items() for value in values]
    return [Case(words=("show", file, f"{key}={value}"), said=(key, value)) for file, key, value in own + adapter]


UNKNOWN_KEYS = {
    "optimizer.lrr": "optimizer.lr",
    "optimzer.lr": "optimizer.lr",
    "step": "steps",
    "Steps": "steps",
    "batch.sise": "batch.size",
    "modle.name": "model.name",
    "data.pth": "data.path",
    "checkpoint.evry": "checkpoint.every",
    "paralel.strategy": "parallel.strategy",
    "shedule.kind": "schedule.kind",
    "precison": "precision",
    "sed": "seed",
}
STRANGE_KEYS = (
    "",
    "é",
    "steps ",
    " steps",
    "steps.x",
    "a.b.c",
    "_target_",
    "__class__",
    "optimizer.",
    ".lr",
    "..",
    "${x}",
    "model.arguments.",
    "model.arguments.a b",
    "x" * 300,
    "laptop.steps",
    "optimizer.lr[0]",
    "a\nb",
    "\x1b[31m",
)

# File: its text, then what the answer must hold.
RECIPES: dict[str, tuple[str, ...]] = {
    "empty.py": ("", "empty.py", "RECIPE", "none"),
    "syntax.py": ("x = 1\ndef broken(:", "syntax.py:2"),
    "unclosed.py": ("x = (\n", "unclosed.py:1", "never closed"),
    "indent.py": ("if True:\nx = 1", "indent.py:2", "indent"),
    "tabs.py": ("if True:\n\tx = 1\n        y = 2", "tabs.py:3", "tabs"),
    "nul.py": ("x = 1\0", "nul.py", "null bytes"),
    "coding.py": ("# coding: nothing\n", "coding.py", "nothing"),
    "deep.py": ("x = " + "(" * 300 + ")" * 300, "deep.py", "parentheses"),
    "missing_module.py": ("import nothing_like_this", "missing_module.py:1", "nothing_like_this"),
    "missing_name.py": ("from launcher import Optimizer", "missing_name.py:1", "Optimizer"),
    "exits.py": ("import sys\nsys.exit(3)", "exits.py:2", "SystemExit: 3"),
    "quits.py": ("raise SystemExit", "quits.py:1", "SystemExit"),
    "really_exits.py": ("import os\nos._exit(0)", "really_exits.py:2", "os._exit", "a recipe is data"),
    "forks.py": ("import os\nos.fork()", "forks.py:2", "os.fork", "a recipe is data"),
    "raises.py": ("x = 1\nraise ValueError('boom')", "raises.py:2", "ValueError: boom"),
    "raises_two_lines.py": ("raise ValueError('a\\nb')", "raises_two_lines.py:1", "ValueError: a b"),
    "raises_base.py": ("class E(BaseException): pass\nraise E('boom')", "raises_base.py:2", "E: boom"),
    "raises_generator_exit.py": ("raise GeneratorExit", "raises_generator_exit.py:1", "GeneratorExit"),
    "raises_group.py": ("raise ExceptionGroup('g', [ValueError(1)])", "raises_group.py:1", "ExceptionGroup"),
    "raises_mute.py": ("class E(Exception):\n def __str__(self): raise self\nraise E", "raises_mute.py:3", "E"),
    "raises_numb.py": ("class E(Exception):\n def __str__(self): return 3\nraise E", "raises_numb.py:3", "E"),
    "raises_odd.py": ("raise ValueError('\\x1b[31m\\u2028x\\ud800')", "raises_odd.py:1", "ValueError"),
    "asserts.py": ("assert 1 == 2, 'no'", "asserts.py:1", "AssertionError: no"),
    "os_error.py": ("open('/nowhere/x')", "os_error.py:1", "FileNotFoundError", "/nowhere/x"),
    "pipe.py": ("raise BrokenPipeError", "pipe.py:1", "BrokenPipeError"),
    "recursion.py": ("def f(): f()\nf()", "recursion.py:1", "RecursionError"),
    "memory.py": ("x = 'a' * 10**15", "memory.py:1", "MemoryError"),
    "unicode.py": ("x = '\\ud800'.encode()", "unicode.py:1", "UnicodeEncodeError"),
    "stdin.py": ("x = input()", "stdin.py:1", "the recipe raised"),
    "two.py": (OWN.replace("RECIPE =", "A = B ="), "two.py", "A, B", "two.py:NAME"),
    "wrong_type.py": ("RECIPE = 3", "wrong_type.py", "RECIPE", "none"),
    "dictionary.py": ("RECIPE = {'steps': 3}", "dictionary.py", "RECIPE", "none"),
    "a_class.py": ("from launcher import Recipe\nRECIPE = Recipe", "a_class.py", "RECIPE", "none"),
    "steps_text.py": (OWN.replace("steps=10", "steps='ten'"), "steps_text.py:11", "steps", "ten"),
    "steps_none.py": (OWN.replace("steps=10", "steps=None"), "steps_none.py:11", "steps", "None"),
    "steps_list.py": (OWN.replace("steps=10", "steps=[1]"), "steps_list.py:11", "steps", "[1]"),
    "steps_half.py": (OWN.replace("steps=10", "steps=10.5"), "steps_half.py", "steps", "whole number"),
    "steps_minus.py": (OWN.replace("steps=10", "steps=-1"), "steps_minus.py", "steps=-1", "at least 1"),
    "no_steps.py": (OWN.replace(", steps=10", ""), "no_steps.py:11", "steps"),
    "unknown_field.py": (OWN.replace("steps=10", "step=10"), "unknown_field.py:11", "'step'"),
    "positional.py": (OWN.replace("model=Model(", "Model("), "positional.py:11"),
    "lr_text.py": (
        OWN.replace("steps=10", "steps=1, optimizer=AdamW(lr='fast')"),
        "lr_text.py:11",
        "optimizer.lr",
        "fast",
    ),
    "lr_nan.py": (OWN.replace("steps=10", "steps=1, optimizer=AdamW(lr=float('nan'))"), "optimizer.lr=nan", "must be"),
    "betas.py": (OWN.replace("steps=10", "steps=1, optimizer=AdamW(betas=3)"), "betas.py:11", "optimizer.betas", "3"),
    "betas_three.py": (OWN.replace("steps=10", "steps=1, optimizer=AdamW(betas=(.1,.2,.3))"), "optimizer.betas", "2"),
    "model_text.py": (OWN.replace("Model(build=build)", "'llama'"), "model_text.py", "model", "llama"),
    "data_none.py": (OWN.replace("Data(build=examples)", "None"), "data_none.py", "data", "cannot be null"),
    "batch_number.py": (OWN.replace("steps=10", "steps=1, batch=8"), "batch_number.py", "batch", "8"),
    "arguments_list.py": (
        OWN.replace("build=build", "build=build, arguments=[1]"),
        "model.arguments=[1]",
        "dictionary",
    ),
    "arguments_nested.py": (OWN.replace("build=build", "build=build, arguments={'a': [1]}"), "model.arguments.a"),
    "both.py": (OWN.replace("build=build", "build=build, name='a'"), "model.name=a", "exactly one"),
    "neither.py": (OWN.replace("build=build", ""), "model.name", "exactly one"),
    "lambda.py": (OWN.replace("build=build", "build=lambda: 1"), "<lambda>", "top level"),
    "method.py": (OWN.replace("build=build", "build=''.join"), "join", "top level"),
    "a_number.py": (OWN.replace("build=build", "build=3"), "3", "top level"),
    "quantize.py": (OWN.replace("steps=10", "steps=1, quantize='nf4'"), "quantize=nf4", "give an adapter"),
    "adapter_alone.py": (OWN.replace("steps=10", "steps=1, adapter=Lora()"), "adapter", "needs a model.name"),
    "strategy.py": (OWN.replace("steps=10", "steps=1, parallel=Parallel(strategy='tp')"), "parallel.strategy", "ddp"),
    "stops_late.py": (OWN.replace("steps=10", "steps=10, stop_after=11"), "stop_after=11", "steps=10"),
    "laptop_unknown.py": (OWN.replace("steps=10", "steps=1, laptop={'stepz': 3}"), "stepz=3", "steps?"),
    "laptop_value.py": (OWN.replace("steps=10", "steps=1, laptop={'steps': 'x'}"), "steps=x", "whole number"),
    "laptop_range.py": (OWN.replace("steps=10", "steps=1, laptop={'steps': 0}"), "steps=0", "at least 1"),
    "laptop_none.py": (OWN.replace("steps=10", "steps=1, laptop=None"), "laptop=None", "dictionary"),
    "laptop_list.py": (OWN.replace("steps=10", "steps=1, laptop=['steps=1']"), "laptop=", "dictionary"),
    "laptop_number.py": (OWN.replace("steps=10", "steps=1, laptop={3: 1}"), "laptop=", "dictionary"),
    "laptop_nested.py": (OWN.replace("steps=10", "steps=1, laptop={'batch': {'size': 1}}"), "batch", "size"),
}

YAMLS: dict[str, tuple[str, ...]] = {
    "open.yaml": ("a: [", "open.yaml", "is not YAML"),
    "tab.yaml": ("a:\n\tb: 1", "tab.yaml", "is not YAML"),
    "two.yaml": ("a: 1\n---\nb: 2", "two.yaml", "is not YAML"),
    "tag.yaml": ("!!python/object/apply:os.system [ls]", "tag.yaml", "is not YAML"),
    "alias.yaml": ("a: &b 1\nc: *b", "alias.yaml", "alias (*NAME)", "write it out"),
    "control.yaml": ("a: \x01", "control.yaml", "is not YAML"),
    "date.yaml": ("a: 2020-13-45", "date.yaml", "is not YAML"),
    "bytes.yaml": ("\udcff\udcfe", "bytes.yaml", "is not YAML"),
    "hash_key.yaml": ("? [1]\n: 2", "hash_key.yaml", "is not YAML"),
    "list.yaml": ("- 1", "list.yaml", "launch show RECIPE"),
    "text.yaml": ("hello", "text.yaml", "launch show RECIPE"),
    "empty.yaml": ("", "empty.yaml", "launch show RECIPE"),
    "null.yaml": ("null", "null.yaml", "launch show RECIPE"),
    "part.yaml": ("model: {name: a}\ndata: {path: b}", "part.yaml", "steps is missing"),
    "unknown.yaml": ("optimizer: {lrr: 1}", "optimizer.lrr", "did you mean lr?"),
    "number.yaml": ("3: 4", "number.yaml", "3 is unknown"),
    "section.yaml": ("model: 3", "section.yaml", "model=3 is not a section"),
    "null_section.yaml": ("optimizer: null", "optimizer cannot be null"),
    "wrong.yaml": ("steps: abc", "wrong.yaml", "steps", "abc", "whole number"),
    "nan.yaml": ("model: {name: a}\ndata: {path: b}\nsteps: 1\noptimizer: {lr: .nan}", "optimizer.lr=nan", "must be"),
    "laptop.yaml": ("model: {name: a}\ndata: {path: b}\nsteps: 1\nlaptop: {stepz: 1}", "stepz", "did you mean steps?"),
    "laptop_list.yaml": ("model: {name: a}\ndata: {path: b}\nsteps: 1\nlaptop: [1]", "laptop_list.yaml", "laptop"),
    "build.yaml": ("model: {build: nowhere}\ndata: {path: b}\nsteps: 1", "nowhere", "package.module:function"),
    "interpolation.yaml": ("model: {name: a}\ndata: {path: b}\nsteps: ${x}", "steps", "${x}", "whole number"),
}

COMMANDS = [
    case("shwo own.py", "shwo", "did you mean show?"),
    case("statsu good", "statsu", "did you mean status?"),
    case("resum good", "resum", "did you mean resume?"),
    case("checkpoint ls good", "checkpoint", "did you mean checkpoints?"),
    case("trian own.py", "trian", "did you mean train?"),
    case("show", "recipe", "required"),
    case("resume", "run", "required"),
    case("status", "run", "required"),
    case("checkpoints", "action", "run", "required"),
    case("checkpoints ls", "run", "required"),
    case("checkpoints list good", "action", "list", "verify"),
    case("checkpoints ls good extra", "takes", "FOLDER", "extra"),
    case("checkpoints export good", "FOLDER"),
    case("checkpoints ls good --step 0", "--step", "0", "from 1"),
    case("checkpoints ls good --step x", "--step", "x", "whole number"),
    case("checkpoints digest good", "good", "no checkpoint"),
    case("checkpoints pin good", "good", "no checkpoint"),
    case("checkpoints unpin good --step 3", "--step 3", "none"),
    case("checkpoints digest good --step 3", "--step 3", "none"),
    case("checkpoints verify good --step 3", "--step 3", "none"),
    case("checkpoints export good new --step 3", "--step 3", "none"),
    case("checkpoints export good full", "full", "not an empty folder", "give a new one"),
    case("checkpoints export good own.py", "own.py", "not an empty folder", "give a new one"),
    case("checkpoints export good own.py/x", "own.py", "not a folder", "give a new one"),
    case(["checkpoints", "export", "good", ""], "FOLDER"),
    case("checkpoints ls good --merged", "--merged", "export"),
    case("status good extra", "extra", "launch status --help"),
    case("logs good extra", "extra", "launch logs --help"),
    case("logs good --rank x", "--rank", "x", "whole number from 0"),
    case("logs good --rank 0", "--rank 0", "0 ranks", "good"),
    case("cancel good extra", "extra", "launch cancel --help"),
    case("ls extra", "extra", "launch ls --help"),
    case("reherse own.py", "reherse", "did you mean rehearse?"),
    case("rehearse own.py batch.size=1", "batch.size=1", "2 ranks", "batch.size=2"),
    case("rehearse own.py --on spott", "--on spott", "use one of"),
    case("rehearse own.py --seed x", "--seed", "x", "whole number from 0"),
    case("rehearse own.py slurm.time=1", "slurm.time", "--on local", "give --on slurm"),
    case("own.py --no-steps", "--no-steps", "give --dry-run"),
    case("own.py word", "word", "KEY=VALUE"),
    case("resume good word", "word", "KEY=VALUE"),
    case("own.py steps=1 steps=2", "steps", "1", "2", "twice"),
]

_FLAGS = {
    "own.py": ("--nodes", "--gpus", "--gpu", "--gpu-memory", "--on", "--runs-dir", "--name", "--allow-change"),
    "resume good": ("--nodes", "--gpus", "--on", "--runs-dir", "--allow-change"),
    "rehearse own.py": ("--on", "--nodes", "--seed"),
    "checkpoints ls good": ("--step", "--runs-dir"),
    "status good": ("--runs-dir",),
    "ls": ("--runs-dir",),
}
_NOT_COUNTS = ("0", "-1", "1.5", "x", "", "1e3", "\uff11", "\xb2", "9" * 30, "1000001", "0x2", "nan")
_NEAR = {
    "own.py": {
        "--node": "--nodes",
        "--gpuss": "--gpus",
        "--nam": "--name",
        "--run-dir": "--runs-dir",
        "--labtop": "--laptop",
        "--take-over": "--takeover",
        "--allow-changes": "--allow-change",
        "--nproc_per_node": "--nproc-per-node",
    },
    "show own.py": {"--jsn": "--json"},
    "ls": {"--jsonn": "--json"},
    "status good": {"--jsson": "--json"},
    "checkpoints verify good": {"--steps": "--step", "--mergd": "--merged"},
}
_NOT_NAMES = ("", ".", "..", "a/b", "../a", "-a", "a b", "a\nb", "é", "a" * 129, "$(x)", "a;b", "_a", "a\0")

FLAGS = [
    *(
        case([*command.split(), flag], flag, "expected one argument")
        for command, flags in _FLAGS.items()
        for flag in flags
    ),
    *(
        case([*command.split(), flag, "1", flag, "2"], flag, "twice")
        for command, flags in _FLAGS.items()
        for flag in flags
        if flag != "--allow-change"
    ),
    *(
        case(["own.py", f"{flag}={value}"], flag, value, "whole number")
        for flag in ("--nodes", "--gpus")
        for value in _NOT_COUNTS
    ),
    *(
        case([*command.split(), flag], flag, f"did you mean {right}?")
        for command, flags in _NEAR.items()
        for flag, right in flags.items()
    ),
    *(case(["own.py", f"--name={name}"], "--name", "use up to 128 letters") for name in _NOT_NAMES),
    case("adapter.py data.path=own.txt model.name=/nowhere", "model.name=/nowhere", "no folder", "correct the path"),
    case("adapter.py data.path=nowhere.jsonl", "data.path=", "nowhere.jsonl", "no file", "correct the path"),
    case("own.py --nodes 2", "--nodes 2", "--on local", "use more --gpus"),
    case("own.py slurm.time=1", "slurm.time", "--on local", "give --on slurm"),
    case("own.py --on slurm slurm.tim=1", "slurm.tim", "did you mean slurm.time?"),
    case("own.py --on slurm slurm.time=1 slurm.time=2", "slurm.time", "1", "2", "twice"),
    case("own.py --on slurm slurm.gpus=many", "slurm.gpus='many'", "is not one of", "gres"),
    case("own.py --on slurm slurm.cpus_per_rank=0", "slurm.cpus_per_rank='0'", "whole number"),
    case("own.py --on slurm slurm.memory=much", "slurm.memory='much'", "use a number"),
    case("own.py --on slurm slurm.exclusive=maybe", "slurm.exclusive='maybe'", "is not true or false"),
    case("own.py --on=local slurm.time=1", "slurm.time", "give --on slurm"),
    case("own.py --gpus 33", "batch.size=32", "33 ranks", "at most 32"),
    case("own.py --on slurmm", "--on slurmm", "did you mean slurm?", "use one of", "local"),
    case(["own.py", "--on", ""], "--on", "use one of"),
    case("own.py --spot-seed 3", "--spot-seed", "--on local", "give --on spot"),
    case("own.py --on slurm --spot-mean-seconds 3", "--spot-mean-seconds", "--on slurm", "give --on spot"),
    case("own.py --on spot --spot-seed x", "--spot-seed", "x", "whole number"),
    case("own.py --on spot --spot-mean-seconds 0", "--spot-mean-seconds", "0", "whole number"),
    case("own.py --on spot --spot-trace nowhere", "--spot-trace", "nowhere", "cannot be read"),
    case("own.py --on spot --spot-trace own.txt", "--spot-trace", "own.txt: line 1", "give lines such as"),
    case("own.py --on spot --spot-trace own.txt --spot-seed 1", "--spot-trace", "--spot-seed", "give one of them"),
    case("own.py --on spot local_spot.sed=1", "local_spot.sed", "seed"),
    case("own.py --on spot --nodes 99", "batch.size=32", "99 ranks", "at most 32"),
    case("own.py --runs-dir s3://bucket/x", "--runs-dir s3://bucket/x", "use a path"),
    case("own.py --runs-dir own.txt", "--runs-dir", "own.txt", "choose another"),
    case("own.py --runs-dir own.txt/x", "--runs-dir", "own.txt", "choose another"),
    case(["own.py", "--runs-dir", "a\0b"], "--runs-dir", "use a path"),
    case(["own.py", "--runs-dir", ""], "--runs-dir", "use a path"),
    case("ls --runs-dir s3://bucket/x", "--runs-dir s3://bucket/x", "use a path"),
    case("own.py --laptop --no-laptop", "--laptop", "not allowed with"),
    case("own.py --takeover=1", "--takeover", "1"),
    case("show own.py --json=x", "--json", "x"),
    case("show own.py --name x", "--name", "launch show --help"),
    case("own.py --json", "--json"),
    case("own.py --name empty", "--name", "empty"),
    case("resume good --name x", "--name"),
    case("resume good --allow-change nothing", "--allow-change nothing"),
    case("resume good --allow-change sead", "--allow-change sead", "did you mean seed?"),
    case("own.py --name good --allow-change stepz", "--allow-change stepz", "did you mean steps?"),
    case("own.py -x", "-x", "launch --help"),
    case("own.py parallel.cpu_offload=true", "parallel.cpu_offload=true", "use parallel.strategy=fsdp"),
    case("own.py parallel.shard_within_node=true", "shard_within_node=true", "use parallel.strategy=fsdp"),
    case("own.py batch.size=1 --gpus 2", "batch.size=1", "2 ranks", "batch.size=2"),
    case("own.py batch.tokens=512", "batch.tokens=512", "batch.size=32", "null"),
    case("own.py batch.tokens=600 batch.size=null", "batch.tokens=600", "sequence_length=256", "use 512 or 768"),
    case("own.py batch.tokens=512 batch.size=null --gpus 3", "batch.tokens=512", "2 ranks", "batch.tokens=768"),
]

SOURCES = [
    case("show nothing", "nothing", "launch ls"),
    case("show gpt_tinny", "gpt_tinny", "did you mean gpt_tiny?"),
    case("show nothing.py", "nothing.py", "launch ls"),
    case("show own.txt", "own.txt", "launch ls"),
    case("show folder.py", "folder.py", "launch ls"),
    case("show .", ".", "launch ls"),
    case("show nothing.yaml", "nothing.yaml", "No such file"),
    case("show folder.yaml", "folder.yaml", "cannot be read"),
    case("show own.py:NOTHING", "NOTHING", "RECIPE", "own.py:NAME"),
    case("show own.py:build", "build", "RECIPE", "own.py:NAME"),
    case(["show", ""], "recipe", "launch ls"),
    case("show :", ":", "launch ls"),
    case(["show", "a\0b.py"], "launch ls"),
    case(["show", "a\0b.yaml"], "launch ls"),
    case(["show", "x" * 300], "x", "launch ls"),
    case(["show", "x" * 300 + ".yaml"], "x", "cannot be read"),
    case(["show", "é\udcff.py"], "launch ls"),
    case(["show", "a\nb"], "launch ls"),
    case("show binary.py", "binary.py"),
    case(["show", "adapter.py", "data.path=a\0b"], "data.path=", "no file's name", "give a path"),
    case("show adapter.py data.path=s3://bucket", "data.path=", "no object's URL", "use a path"),
    case("show adapter.py data.path=ftp://host/a.txt", "data.path=", "no object's URL", "use a path"),
    case("show latin.py", "latin.py"),
    case("show wide.yaml", "wide.yaml"),
    *(case(f"show --laptop {name}", *said) for name, (_, *said) in RECIPES.items()),
    *(case(f"show --laptop {name}", *said) for name, (_, *said) in YAMLS.items()),
]

_READERS = (
    "status {}",
    "resume {}",
    "logs {}",
    "cancel {}",
    "checkpoints ls {}",
    "checkpoints verify {}",
    "checkpoints digest {}",
    "checkpoints pin {}",
)
RUNS = [
    *(
        case(command.format(run), run, *said)
        for command in _READERS
        for run, *said in (
            ("nothing", "no run", "launch ls"),
            ("empty", "no run", "launch ls"),
            ("file", "no run", "launch ls"),
            ("god", "did you mean good?"),
            ("newer", "format 99", "formats 1 and 2"),
            ("torn", "run.json"),
            ("listed", "run.json"),
        )
    ),
    *(
        case([*command.format("x").split()[:-1], name], "no run")
        for command in _READERS
        for name in ("", "a\0b", "x" * 300, "a\nb")
    ),
    *(case(f"checkpoints {action} badlog", "log", code=4) for action in ("ls", "verify", "digest", "pin")),
    case("status badlog", "log", code=4),
    case("resume badlog", "log", code=4),
    case("status badattempt", "attempt.json"),
    case("status badoutcome", "outcome.json"),
    case("status bare", "run.json", "steps"),
    case("resume badconfig", "config.yaml", "is not YAML"),
    case("resume badvalue", "config.yaml", "steps", "whole number"),
    case("resume noconfig", "config.yaml", "No such file"),
    case("resume good steps=5", "steps changed: 10 -> 5", "--allow-change steps"),
    case("resume good steps=x", "steps=x", "whole number"),
    case("resume good optimizer.lrr=1", "optimizer.lrr=1", "did you mean optimizer.lr?"),
    case("resume good stop_after=11", "stop_after=11", "steps=10"),
    case("resume good seed=3 --allow-change steps", "seed changed: 0 -> 3", "--allow-change seed"),
]

KEYS = [
    *(
        case(["show", "own.py", f"{key}=1"], f"{key}=1", f"did you mean {right}?")
        for key, right in UNKNOWN_KEYS.items()
    ),
    *(case(["show", "own.py", f"{key}=1"], "unknown setting") for key in STRANGE_KEYS),
]

CASES = [*COMMANDS, *FLAGS, *SOURCES, *RUNS, *KEYS, *field_cases()]
