"""Which settings go together: every combination either runs or is refused on the command line, by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cluster.topology import Topology
from launcher import Batch, Data, Lora, Model, Parallel, Recipe
from launcher.cli import main
from launcher.errors import UsageError
from launcher.plan import make_plan
from launcher.strategies import STRATEGIES

CHOICES: dict[str, tuple[str, ...]] = {
    "parallel.strategy": tuple(STRATEGIES),
    "parallel.cpu_offload": ("false", "true"),
    "parallel.shard_within_node": ("false", "true"),
    "quantize": ("none", "nf4"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
COMBINATIONS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
REPLICATED = ("parallel.cpu_offload=true", "parallel.shard_within_node=true")
OWN_RECIPE = """
from launcher import *
RECIPE = Recipe(model=Model(name="./model"), adapter=Lora(), data=Data(path="x.jsonl"), steps=2)
"""


def recipe_of(combination: dict[str, str]) -> Recipe:
    return Recipe(
        model=Model(name="./model"),
        adapter=Lora(),
        data=Data(path="x.jsonl"),
        steps=2,
        batch=Batch(size=4),
        quantize=combination["quantize"],
        precision=combination["precision"],
        parallel=Parallel(
            strategy=combination["parallel.strategy"],
            cpu_offload=combination["parallel.cpu_offload"] == "true",
            shard_within_node=combination["parallel.shard_within_node"] == "true",
        ),
    )


def refusal(combination: dict[str, str], *, has_gpus: bool) -> str | None:
    try:
        make_plan(recipe_of(combination), Topology(nodes=1, ranks_per_node=2, has_gpus=has_gpus), cores_per_node=2)
    except UsageError as error:
        return str(error)
    return None


def words_of(combination: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in combination.items()]


@pytest.mark.parametrize("has_gpus", [False, True], ids=["cpu", "cuda"])
def test_each_combination_is_planned_or_refused_with_a_remedy_that_works(has_gpus):
    refused = 0
    for combination in COMBINATIONS:
        text = refusal(combination, has_gpus=has_gpus)
        if text is None:
            continue
        refused += 1
        culprit = text.partition(" cannot be used with ")[0]
        assert set(culprit.split()) <= {*words_of(combination), f"device={'cuda' if has_gpus else 'cpu'}"}, text
        others = [name for name in STRATEGIES if f"parallel.strategy={name}" in text.partition("); use ")[2]]
        for name in others:
            assert refusal(combination | {"parallel.strategy": name}, has_gpus=has_gpus) is None, text
    assert 0 < refused < len(COMBINATIONS)


@pytest.mark.parametrize("devices", ["", "0,1"], ids=["cpu", "cuda"])
def test_the_command_line_refuses_what_the_plan_refuses_in_one_line_before_anything_is_written(
    tmp_path, monkeypatch, capsys, devices
):
    (tmp_path / "own.py").write_text(OWN_RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    for combination in COMBINATIONS:
        text = refusal(combination, has_gpus=bool(devices))
        if text is None:
            continue
        assert main(["own.py", *words_of(combination), "--gpus", "2", "--runs-dir", "runs"]) == 2
        assert capsys.readouterr().err == f"launch: {text}\n"
    assert not Path("runs").exists()


def test_data_parallelism_refuses_what_needs_shards():
    for setting in REPLICATED:
        key, _, value = setting.partition("=")
        plain = dict.fromkeys(CHOICES, "false") | {"parallel.strategy": "ddp", "quantize": "none", "precision": "fp32"}
        text = refusal(plain | {key: value}, has_gpus=False)
        assert text is not None
        assert text.startswith(f"{setting} cannot be used with parallel.strategy=ddp (")
        assert "use parallel.strategy=fsdp" in text


def test_every_strategy_of_the_table_names_a_class_that_exists():
    from importlib import import_module

    for strategy in STRATEGIES.values():
        name = strategy.implementation.partition(":")[2]
        assert isinstance(getattr(import_module(strategy.module), name), type)
