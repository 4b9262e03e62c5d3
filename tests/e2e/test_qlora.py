"""The flagship recipe for real: a 4-bit Llama with adapters, interrupted, resumed, exported, loaded by peft."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest
from support.pages import FIRST_RUN, commands_of, first_script_of
from support.runs_for_tests import digests, launch, run_script, start, steps_of, wait_for_step

FLAGSHIP = [
    "recipes/llama_qlora.py",
    "--laptop",
    "steps=4",
    "checkpoint.every=2",
    "evaluation.samples=0",
    "data.sequence_length=64",
    "batch.size=2",
    "batch.micro=2",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` was never disturbed; `demo` was interrupted in the middle and resumed, as the first-run page does."""
    folder = tmp_path_factory.mktemp("flagship")
    whole = launch(*FLAGSHIP, "--name", "whole", runs_dir=folder, timeout=300)
    assert whole.returncode == 0, whole.stderr
    demo, resume = (shlex.split(c) for c in commands_of(FIRST_RUN) if "--name demo" in c or "resume demo" in c)
    launcher = start(*FLAGSHIP, *demo[1:], runs_dir=folder)
    wait_for_step(folder / "demo", 1)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 75, errors
    assert errors.splitlines()[-1].split()[1:] == resume[1:], "the last line is the command that the page goes on with"
    resumed = launch(*resume[1:], runs_dir=folder, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    return folder


def test_an_interrupted_qlora_run_ends_with_the_same_adapter(runs):
    assert digests(runs / "demo") == digests(runs / "whole")
    assert steps_of(runs / "demo") == [1, 2, 3, 4]


def test_the_rest_of_the_first_run_page_works_as_it_is_written(runs, tmp_path):
    commands = [shlex.split(command) for command in commands_of(FIRST_RUN)]
    (tmp_path / "ask.py").write_text(first_script_of(FIRST_RUN))
    for program, *words in commands[commands.index([".venv/bin/launch", "resume", "demo"]) + 1 :]:
        if program == "ls":
            exported = {path.name for path in (tmp_path / words[0]).iterdir()}
            assert {"adapter_config.json", "adapter_model.safetensors"} <= exported
        elif program == ".venv/bin/launch":
            result = launch(*words, runs_dir=runs, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        else:
            assert program == ".venv/bin/python"
            assert run_script(*words, tmp_path).strip()


def test_only_adapters_and_their_optimizer_state_are_saved(runs):
    adapters = 4_884_480 * 4  # rank 16 on all linear layers of the 135M Llama, fp32
    shards = list((runs / "whole/checkpoints/data").glob("*/rank-*.bin"))
    assert shards
    for shard in shards:
        assert shard.stat().st_size < 3 * 1.05 * adapters, "an adapter and its two moments"
