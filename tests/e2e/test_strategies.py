"""One recipe under every strategy: the same losses, one checkpoint for all of them, and every sample once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.runs_for_tests import (
    Processes,
    digests,
    json_lines,
    launch,
    small_words,
    start,
    steps_of,
    wait_for_step,
)
from support.strategies import Job, Result, largest_deviation, run_phases, unequal_tensors

DDP: dict[str, object] = {"parallel.strategy": "ddp"}
FSDP: dict[str, object] = {"parallel.strategy": "fsdp"}
OFFLOAD: dict[str, object] = {**FSDP, "parallel.cpu_offload": "true"}
SPREADS = {"ddp": DDP, "fsdp": FSDP, "fsdp+offload": OFFLOAD}
STEPS = {"ddp": 50, "fsdp": 50, "fsdp+offload": 20}
VARIANTS: dict[str, dict[str, object]] = {
    "undivided": {"optimizer.clip": "null", "batch.micro": "6"},
    "recomputing": {"model.activation_checkpointing": "true"},
    "uneven": {"batch.size": "5", "batch.micro": "1"},
    "in bf16": {"precision": "bf16"},
    "in fp16": {"precision": "fp16"},
}
CUT = 6  # steps before the save
REST = 4  # steps after the restore
TOLERANCE = 1e-5
# Saved by the one, restored by the other: the diagonal, and corners.
PAIRS = [
    (("ddp", 1), ("fsdp", 2)),
    (("ddp", 2), ("fsdp+offload", 3)),
    (("fsdp", 2), ("ddp", 1)),
    (("fsdp", 2), ("fsdp", 2)),
    (("fsdp", 3), ("fsdp+offload", 2)),
    (("fsdp+offload", 2), ("fsdp", 3)),
    (("fsdp+offload", 3), ("ddp", 2)),
    (("fsdp+offload", 3), ("fsdp", 1)),
]

Ranks = tuple[str, int]


def word(ranks: Ranks) -> str:
    return f"{ranks[0]}-{ranks[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@dataclass(frozen=True)
class Results:
    """By the words that say who: from scratch, and what pairs trained after the restore."""

    trained: dict[str, Result]
    restored: dict[tuple[Ranks, Ranks], Result]


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    pairs = {(saved, to): f"{word(saved)} to {word(to)}" for saved, to in PAIRS}
    restores: dict[int, list[Job]] = {1: [], 2: [], 3: []}
    for (saved, (spread, world)), name in pairs.items():
        settings, source = SPREADS[spread], str(folder / word(saved))
        restores[world].append(Job(name=name, settings=settings, steps=REST, source=source))
        copy = Job(name=f"{name} copied", settings=settings, steps=0, source=source, target=str(folder / name))
        restores[world].append(copy)
    found = run_phases(folder / "run", [*from_scratch(folder).items(), *restores.items()])
    return Results(found, {pair: found[name] for pair, name in pairs.items()})


def from_scratch(folder: Path) -> dict[int, list[Job]]:
    """Runs by world size. Those of the pairs save where they end."""
    jobs: dict[int, list[Job]] = {1: [], 2: [], 3: [], 4: []}
    for world in (1, 2):
        for name, settings in SPREADS.items():
            jobs[world].append(Job(name=f"{name} on {world}", settings=settings, steps=STEPS[name]))
    for name, settings in SPREADS.items():
        jobs[2] += [
            Job(name=f"{name} {what}", settings=settings | changed, steps=10) for what, changed in VARIANTS.items()
        ]
    jobs[4].append(Job(name="hybrid", settings=FSDP | {"parallel.shard_within_node": "true"}, steps=10, nodes=2))
    for spread, world in dict.fromkeys(saved for saved, _ in PAIRS):
        name = word((spread, world))
        jobs[world].append(Job(name=name, settings=SPREADS[spread], steps=CUT, target=str(folder / name)))
    return jobs


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("spread", SPREADS)
def test_every_strategy_has_the_losses_of_one_rank_alone(results, spread, world):
    reference, result = results.trained["ddp on 1"], results.trained[f"{spread} on {world}"]
    assert reference.losses[-1] < 0.7 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses[: STEPS[spread]]) < TOLERANCE
    # Later the norms drift apart more than the losses do.
    assert largest_deviation(result.norms[:10], reference.norms[:10]) < TOLERANCE


def test_offload_changes_no_bit_nor_does_sharding_on_one_rank_or_where_nothing_is_clipped_or_accumulated(results):
    losses = {name: result.losses for name, result in results.trained.items()}
    for world in (1, 2):
        assert losses[f"fsdp+offload on {world}"] == losses[f"fsdp on {world}"][: STEPS["fsdp+offload"]]
    assert losses["fsdp on 1"] == losses["ddp on 1"]
    assert losses["fsdp undivided"] == losses["ddp undivided"]


def test_hybrid_sharding_has_the_losses_of_one_rank_alone(results):
    reference = results.trained["ddp on 1"].losses[:10]
    assert largest_deviation(results.trained["hybrid"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("spread", SPREADS)
def test_recomputing_activations_changes_no_bit(results, spread):
    assert results.trained[f"{spread} recomputing"].losses == results.trained[f"{spread} on 2"].losses[:10]


@pytest.mark.parametrize("spread", SPREADS)
def test_ranks_with_fewer_micro_batches_than_others_keep_step(results, spread):
    reference = results.trained["ddp uneven"].losses
    assert largest_deviation(results.trained[f"{spread} uneven"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("spread", SPREADS)
def test_low_precision_stays_close_to_fp32(results, spread, precision):
    result = results.trained[f"{spread} in {precision}"]
    assert 0 < largest_deviation(result.losses, results.trained[f"{spread} on 2"].losses[:10]) < 0.01
    assert (result.loss_scale is not None) == (precision == "fp16")


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=lambda ranks: word(ranks))
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(folder, results, saved, to):
    assert unequal_tensors(str(folder / word(saved)), str(folder / f"{word(saved)} to {word(to)}")) == []
    rest = results.trained["ddp on 1"].losses[CUT : CUT + REST]
    assert largest_deviation(results.restored[saved, to].losses, rest) < TOLERANCE


def test_a_killed_run_under_fsdp_ends_like_one_that_was_not(tmp_path):
    evaluation = {"evaluation__samples": 7, "evaluation__tokens": 8}  # a rank has more samples than the other
    words = [*small_words(2, steps=30, **evaluation), "parallel.strategy=fsdp"]
    whole = launch(*words, "--name", "whole", runs_dir=tmp_path)
    assert whole.returncode == 0, whole.stderr
    launcher = start(*words, "--name", "killed", runs_dir=tmp_path)
    wait_for_step(tmp_path / "killed", 12)
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    events = json_lines(tmp_path / "killed/attempts/0001/events.jsonl")
    assert [event["event"] for event in events].count("restarted") == 1
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert steps_of(tmp_path / "killed") == list(range(1, 31))


def test_a_run_goes_on_under_other_strategies_and_world_sizes_with_every_sample_once(tmp_path, undisturbed):
    run = tmp_path / "run"
    first = launch(*small_words(4), "stop_after=15", "--name", "run", runs_dir=tmp_path)
    assert first.returncode == 75, first.stderr
    for stop, ranks, spread in ((30, 2, FSDP), (45, 3, OFFLOAD), (60, 1, DDP | {"parallel.cpu_offload": "false"})):
        words = [f"{key}={value}" for key, value in spread.items()]
        result = launch("resume", "run", "--gpus", str(ranks), f"stop_after={stop}", *words, runs_dir=tmp_path)
        assert result.returncode == (75 if stop < 60 else 0), result.stderr
        assert "parallel.strategy changed: " in result.stderr or spread is OFFLOAD
    reference = undisturbed(1)
    assert digests(run)["samples"] == digests(reference)["samples"]
    assert losses(run) == pytest.approx(losses(reference), rel=10 * TOLERANCE)


def llama_words(recipe: str, folder: Path) -> list[str]:
    return [
        f"recipes/{recipe}.py", "--laptop", f"model.name={folder}", "data.sequence_length=64", "steps=4",
        "batch.size=4", "batch.micro=2", "evaluation.samples=0", "schedule.warmup_steps=0", "optimizer.lr=1e-2",
    ]  # fmt: skip


def test_a_4_bit_base_trains_the_same_sharded_as_on_one_rank_alone(small_llama, tmp_path):
    offloaded = [f"{key}={value}" for key, value in OFFLOAD.items()]
    for name, ranks, spread in (("alone", 1, []), ("sharded", 2, offloaded)):
        words = [*llama_words("llama_qlora", small_llama), *spread, "--gpus", str(ranks), "--name", name]
        result = launch(*words, runs_dir=tmp_path)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "alone"), rel=TOLERANCE)


def test_all_weights_of_a_base_that_ranks_read_in_parts_train_the_same_and_resume(small_llama, tmp_path):
    words = llama_words("llama_fsdp", small_llama)
    alone = launch(*words, "parallel.strategy=ddp", "--name", "alone", runs_dir=tmp_path)
    assert alone.returncode == 0, alone.stderr
    stopped = launch(*words, "--gpus", "2", "stop_after=2", "--name", "parts", runs_dir=tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    resumed = launch("resume", "parts", "--gpus", "2", runs_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "alone"), rel=TOLERANCE)
    exported = launch("checkpoints", "export", "parts", str(tmp_path / "exported"), runs_dir=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported/model.safetensors").stat().st_size > 1_000_000


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in json_lines(run / "metrics.jsonl")]


def test_the_loss_scale_is_in_the_checkpoint_and_a_resumed_run_ends_the_same(tmp_path):
    words = [*small_words(1, steps=6), "parallel.strategy=fsdp", "precision=fp16"]
    assert launch(*words, "--name", "whole", runs_dir=tmp_path).returncode == 0
    stopped = launch(*words, "stop_after=3", "--name", "stopped", runs_dir=tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    (manifest,) = (tmp_path / "stopped/checkpoints/data").glob("*/MANIFEST.json")
    assert '"good_steps":3' in manifest.read_text().replace(" ", "")
    resumed = launch("resume", "stopped", runs_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
