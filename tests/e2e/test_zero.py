"""ZeRO: the same losses as data parallelism, and its flat partitions in the checkpoint that all strategies share."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.runs_for_tests import (
    REPOSITORY,
    Processes,
    digests,
    json_lines,
    launch,
    small_words,
    start,
    steps_of,
    wait_for_step,
)
from support.strategies import Job, Result, largest_deviation, run_phases, unequal_tensors, whole_state

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed; scripts/setup does")

OFFLOAD = {"parallel.cpu_offload": "true"}
ZERO = ("zero1", "zero2", "zero3")
SPREADS: dict[str, dict[str, object]] = {
    **{name: {"parallel.strategy": name} for name in ("ddp", "fsdp", *ZERO)},
    **{f"{name}+offload": {"parallel.strategy": name, **OFFLOAD} for name in ZERO},
}
COMPARED = {1: ("zero1", "zero3"), 2: ("zero1", "zero2", "zero3")}
STEPS = 12
FEW = 5
VARIANTS: dict[str, dict[str, object]] = {
    "unclipped": {"optimizer.clip": "null", "batch.micro": "6"},
    "uneven": {"batch.size": "5", "batch.micro": "1"},
    "recomputing": {"model.activation_checkpointing": "true"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "moody": {
        "model.build": f"{REPOSITORY / 'tests/support/moody.py'}:moody_gpt",
        "batch.micro": "6",
    },
}
CUT = 6  # steps before the save
REST = 4  # steps after the restore
TOLERANCE = 1e-5

Ranks = tuple[str, int]

# Saved by the one, restored by the other.
PAIRS: list[tuple[Ranks, Ranks]] = [
    (("zero3", 2), ("ddp", 1)),
    (("zero3", 2), ("fsdp", 2)),
    (("zero3", 2), ("zero3", 3)),
    (("zero3", 2), ("zero1", 1)),
    (("zero2", 2), ("zero3+offload", 3)),
    (("zero3+offload", 2), ("zero2+offload", 2)),
    (("fsdp", 2), ("zero3", 3)),
    (("ddp", 1), ("zero3", 2)),
    (("zero1", 1), ("zero3", 2)),
]


def word(ranks: Ranks) -> str:
    return f"{ranks[0]}-{ranks[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@dataclass(frozen=True)
class Results:
    """By world size and name: runs from scratch; and what pairs trained after the restore."""

    trained: dict[int, dict[str, Result]]
    restored: dict[tuple[Ranks, Ranks], Result]


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    pairs = {(saved, to): f"{word(saved)} to {word(to)}" for saved, to in PAIRS}
    restores: dict[int, list[Job]] = {1: [], 2: [], 3: []}
    for (saved, (spread, world)), name in pairs.items():
        settings, source = SPREADS[spread], str(folder / word(saved))
        copy = Job(name=f"{name} copied", settings=settings, steps=0, source=source, target=str(folder / name))
        restores[world] += [copy, Job(name=name, settings=settings, steps=REST, source=source)]
    scratch = from_scratch(folder)
    found = run_phases(folder / "run", [*scratch.items(), *restores.items()])
    trained = {world: {job.name.partition("@")[0]: found[job.name] for job in jobs} for world, jobs in scratch.items()}
    return Results(trained, {pair: found[name] for pair, name in pairs.items()})


def from_scratch(folder: Path) -> dict[int, list[Job]]:
    """Runs by world size, each as NAME@WORLD. Those of the pairs save where they end."""
    jobs: dict[int, list[Job]] = {1: [], 2: []}
    for world, names in COMPARED.items():
        jobs[world] += [Job(name=f"{name}@{world}", settings=SPREADS[name], steps=STEPS) for name in ("ddp", *names)]
    for name in ("ddp", *ZERO):
        jobs[2] += [
            Job(name=f"{name} {what}@2", settings=SPREADS[name] | changed, steps=FEW)
            for what, changed in VARIANTS.items()
        ]
    for name in ZERO:
        offloaded = SPREADS[f"{name}+offload"]
        jobs[2].append(Job(name=f"{name}+offload@2", settings=offloaded, steps=FEW))
        jobs[2].append(Job(name=f"{name}+offload moody@2", settings=offloaded | VARIANTS["moody"], steps=FEW))
    for spread, world in dict.fromkeys(saved for saved, _ in PAIRS):
        name = word((spread, world))
        jobs[world].append(Job(name=name, settings=SPREADS[spread], steps=CUT, target=str(folder / name)))
    return jobs


@pytest.fixture(scope="module")
def trained(results: Results) -> dict[int, dict[str, Result]]:
    return results.trained


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, names in COMPARED.items() for name in names])
def test_every_stage_has_the_losses_of_data_parallelism(trained, world, name):
    reference, result = trained[world]["ddp"], trained[world][name]
    assert reference.losses[-1] < 0.9 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses) < TOLERANCE
    assert largest_deviation(result.norms, reference.norms) < 200 * TOLERANCE, "some batches are that sensitive"


@pytest.mark.parametrize("stage", ZERO)
def test_without_clipping_and_accumulation_the_losses_are_those_of_data_parallelism_bit_by_bit(trained, stage):
    assert trained[2][f"{stage} unclipped"].losses == trained[2]["ddp unclipped"].losses


@pytest.mark.parametrize("stage", ZERO)
def test_offload_changes_no_bit(trained, stage):
    assert trained[2][f"{stage}+offload"].losses == trained[2][stage].losses[:FEW]


@pytest.mark.parametrize("stage", ZERO)
def test_recomputing_activations_changes_no_bit(trained, stage):
    assert trained[2][f"{stage} recomputing"].losses == trained[2][stage].losses[:FEW]


@pytest.mark.parametrize("stage", ZERO)
def test_ranks_with_fewer_micro_batches_than_others_keep_step(trained, stage):
    assert largest_deviation(trained[2][f"{stage} uneven"].losses, trained[2]["ddp uneven"].losses) < TOLERANCE


@pytest.mark.parametrize("name", [*ZERO, *(f"{stage}+offload" for stage in ZERO)])
def test_a_layer_that_a_step_does_not_use_has_no_gradient_left_from_the_step_before(trained, name):
    reference = trained[2]["ddp moody"].losses
    assert largest_deviation(trained[2][f"{name} moody"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ZERO)
def test_low_precision_is_that_of_data_parallelism(trained, stage, precision):
    result, reference = trained[2][f"{stage} {precision}"], trained[2][f"ddp {precision}"]
    assert largest_deviation(result.losses, reference.losses) < 1e-3
    assert 0 < largest_deviation(result.losses, trained[2][stage].losses[:FEW]) < 0.01
    assert result.loss_scale == reference.loss_scale


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=word)
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(folder, results, saved, to):
    assert unequal_tensors(str(folder / word(saved)), str(folder / f"{word(saved)} to {word(to)}")) == []
    rest = results.trained[1]["ddp"].losses[CUT : CUT + REST]
    assert largest_deviation(results.restored[saved, to].losses, rest) < TOLERANCE


def test_a_checkpoint_has_the_names_and_shapes_that_data_parallelism_gives_it(folder, trained):
    shapes = {name: tensor.shape for name, tensor in whole_state(str(folder / "ddp-1")).items()}
    for name in ("zero1-1", "zero2-2", "zero3-2", "zero3+offload-2"):
        assert {name: tensor.shape for name, tensor in whole_state(str(folder / name)).items()} == shapes


def test_a_killed_run_ends_like_one_that_was_not_and_nothing_of_deepspeed_reaches_the_terminal(tmp_path):
    words = [*small_words(2, steps=30, evaluation__samples=8), "parallel.strategy=zero3", "parallel.cpu_offload=true"]
    whole = launch(*words, "--name", "whole", runs_dir=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "deepspeed" not in (whole.stdout + whole.stderr).lower()
    launcher = start(*words, "--name", "killed", runs_dir=tmp_path)
    wait_for_step(tmp_path / "killed", 12)
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    events = json_lines(tmp_path / "killed/attempts/0001/events.jsonl")
    assert [event["event"] for event in events].count("restarted") == 1
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert steps_of(tmp_path / "killed") == list(range(1, 31))
